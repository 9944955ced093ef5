"""Text of unknown origin made harmless for where it stands on a card: in Markdown, in code, in Python."""

import json
import re

import jinja2

# What begins emphasis, code, links, HTML, a cell, a formula or a heading; `_` does so at the edge of a word.
_SPECIAL = re.compile(r"[\\`*\[\]|~$#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markdown(str):
    """Text that is Markdown already, and stays as it is."""

    __slots__ = ()


def one_line(text: str) -> str:
    """Without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def escape(text: object) -> Markdown:
    """`text` as Markdown that shows it, on one line."""
    if isinstance(text, Markdown):
        return text
    marked = _SPECIAL.sub(r"\\\g<0>", one_line(str(text)))
    return Markdown("".join(_HTML.get(c, c) for c in marked))


def code(text: str) -> Markdown:
    """`text` as code within a line: in more backticks than it has in a row."""
    text = one_line(text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if "`" in text or not text else ""
    return Markdown(f"{fence}{pad}{text}{pad}{fence}")


def python_string(text: str) -> Markdown:
    """`text` as a literal of Python, in double quotation marks."""
    return Markdown(json.dumps(text))


def finalize(value: object) -> object:
    """What Jinja is to print of a value; a condition without `else` gives an undefined one."""
    return value if isinstance(value, jinja2.Undefined) else escape(value)
