"""What the files of a publication say, decoded: names and values of JSON and YAML, lines of text, headers of weights.

A secret or a path that a file spells with escapes, or in the name of a tensor, is there for every reader of the Hub: what is
searched is what they would see.
"""

import base64
import binascii
import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml
from huggingface_hub import get_local_safetensors_metadata
from huggingface_hub.errors import SafetensorsParsingError
from safetensors import SafetensorError, safe_open

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|([^A-Za-z0-9\s]))")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
_FRONT_MATTER = re.compile(r"\s*---\s*\n(.*?)\n---\s*(?:\n|\Z)", flags=re.DOTALL)


@dataclass(frozen=True)
class Piece:
    """A text in a file.

    Attributes:
        where: `"line 3"`, `"options.teacher"`, `"a name in options"`; it may hold what is in the file.
        text: what stands there.
        name: what the file calls it, where it has a name.
    """

    where: str
    text: str
    name: str = ""


def pieces(name: str, file: Path) -> list[Piece]:
    """Everything that `file`, called `name` in the repository, tells; its name as well.

    Raises:
        ValueError: neither safetensors nor UTF-8 text.
    """
    found = [Piece("its name", name)]
    if name.endswith(".safetensors"):
        return found + _structured(_header(file), "the header")
    text = file.read_bytes().decode("utf-8-sig")
    if "\0" in text:
        raise ValueError("it holds the character NUL")
    structured = _parsed(name, text)
    if structured is not None:
        found += _structured(structured, "")
    if not (structured is not None and name.endswith(".json")):
        found += [Piece(f"line {number}", line) for number, line in enumerate(text.splitlines(), 1)]
    return found


class _Pairs(list[tuple[str, Any]]):
    """An object of a JSON file, with the values of names that stand in it twice."""


def _header(file: Path) -> Any:
    """The header of a safetensors file; empty where it is damaged, which another check reports.

    It is searched as it is: huggingface_hub's reader drops unknown fields and all but the last of a name that stands twice.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if length <= file.stat().st_size else b""
    try:
        return json.loads(header, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return _Pairs()


def parameter_counts(file: Path) -> Counter[str]:
    """The parameters in a safetensors file, by type; none where its header is damaged."""
    try:
        # It refuses a header that does not fit its file; the other reader would multiply out any shape.
        with safe_open(file, framework="pt"):
            return Counter(get_local_safetensors_metadata(file).parameter_count)
    except (SafetensorError, SafetensorsParsingError, OSError):
        return Counter()


def _parsed(name: str, text: str) -> Any:
    """The content of a JSON or YAML file, or of the metadata of a card; None where there is none."""
    try:
        if name.endswith(".json"):
            return json.loads(text, object_pairs_hook=_Pairs)
        if name.endswith((".yaml", ".yml")):
            return yaml.safe_load(text)
        if name.endswith(".md") and (match := _FRONT_MATTER.match(text)):
            return yaml.safe_load(match[1])
    except (ValueError, RecursionError, yaml.YAMLError):
        pass
    return None


def _structured(content: Any, where: str) -> list[Piece]:
    """Every name and every value in a JSON or YAML value.

    Raises:
        ValueError: it is nested too deep.
    """
    try:
        return list(_walk(content, where, "", {}))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _walk(content: Any, where: str, name: str, seen: dict[int, Any]) -> Iterator[Piece]:
    """JSON in strings is walked through as well.

    seen: by identity what was walked through already, and is kept alive for it: YAML may refer to one thing many times.
    """
    if isinstance(content, list | dict):
        if id(content) in seen:
            return
        seen[id(content)] = content
    match content:
        case _Pairs() | dict():
            for key, value in content if isinstance(content, _Pairs) else content.items():
                yield Piece(f"a name in {where or 'the file'}", str(key))
                yield from _walk(value, f"{where}.{key}" if where else str(key), str(key), seen)
        case list() | tuple() | set():
            for value in content:
                yield from _walk(value, where, name, seen)
        case str():
            yield Piece(where or "the file", content, name)
            if content.lstrip()[:1] in ("{", "[", '"'):
                try:
                    inner = json.loads(content, object_pairs_hook=_Pairs)
                except (ValueError, RecursionError):
                    return
                yield from _walk(inner, where, name, seen)
        case None | bool() | float():
            return
        case _:
            yield Piece(where or "the file", str(content), name)


def readings(text: str) -> Iterator[str]:
    """`text`, and what lines of it say to who undoes the escapes of HTML, addresses, strings and Markdown, or base64."""
    yield text
    for marks, undo in _ESCAPES:
        lines = [line for line in text.splitlines() if any(mark in line for mark in marks)]
        undone = [other for line in lines if (other := undo(line)) != line]
        if undone:
            yield "\n".join(undone)
    if hidden := [other for word in _BASE64.findall(text) if (other := decoded(word)).isprintable() and other]:
        yield "\n".join(hidden)


def _unescaped(match: re.Match[str]) -> str:
    return match[3] or chr(int(match[1] or match[2], 16))


def decoded(word: str) -> str:
    """The text of a base64 word; empty where it is none."""
    try:
        return base64.b64decode(word + "=" * (-len(word) % 4), altchars=b"-_" if {*word} & {*"-_"} else None).decode("ascii")
    except (binascii.Error, ValueError):
        return ""


_INVISIBLE = dict.fromkeys((0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF))
# What tells that a line may be escaped, and what undoes it.
_ESCAPES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("&", html.unescape),
    ("%", unquote),
    ("\\", partial(_ESCAPE.sub, _unescaped)),
    ("".join(map(chr, _INVISIBLE)), lambda line: line.translate(_INVISIBLE)),
)
