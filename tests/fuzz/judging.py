"""What a command line must never do, whatever it is given."""

import json
import math
import re
import signal
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from .running import Case, Outcome

_NO_OUTPUT = re.compile(r"error: standard output cannot be written \([^\n]*\)\.\n?")  # the whole of it, with exit code 1
_ERROR = re.compile(r"^(error|Error): .*\S", flags=re.MULTILINE)
LONGEST = 2_000  # characters of a line that somebody should read
TOLERANCE = 1e-4
KEPT, REFUSED, FREE = "kept", "refused", "free"


@dataclass(frozen=True)
class Trial:
    """A case, and what it is to show.

    Attributes:
        command: `"predict"`, `"benchmark cpu"`.
        what: what is wrong with its input.
        meaning: `KEPT`: the result, if there is one, is that of the right input; `REFUSED`: there is none; `FREE`: another
            right input may have come of it.
    """

    command: str
    case: Case
    what: str = ""
    meaning: str = FREE


def complaint(outcome: Outcome, codes: Collection[int] = (0, 2)) -> str | None:
    """What is wrong with an ending; None where nothing is.

    codes: those that the command documents.
    """
    if outcome.code is None:
        return f"no end within {outcome.seconds:.0f} seconds"
    if outcome.code < 0:
        return f"death by {signal.Signals(-outcome.code).name}"
    if "Traceback (most recent call last)" in outcome.errors:
        return f"traceback: {outcome.errors.strip().splitlines()[-1][:300]}"
    if outcome.code == 1 and _NO_OUTPUT.fullmatch(outcome.errors):
        return None
    if outcome.code not in codes:
        return f"exit code {outcome.code}: {outcome.errors.strip()[-300:]}"
    lines = [match[0] for match in _ERROR.finditer(outcome.errors)]
    if outcome.code == 2 and (len(lines) != 1 or not outcome.errors.rstrip().endswith(lines[0])):
        return f"exit code 2 and {len(lines)} lines of error, not one at the end: {outcome.errors.strip()[-300:]}"
    # Errors of usage, which typer writes, repeat what was typed.
    if longest := [line for line in lines if len(line) > LONGEST and line.startswith("error")]:
        return f"an error of {len(longest[0])} characters: {longest[0][:200]}"
    return None


def difference(found: Any, expected: Any, where: str = "") -> str | None:
    """The first place where two results of JSON are not the same, numbers up to `TOLERANCE`; None where they are."""
    if isinstance(expected, dict) and isinstance(found, dict) and found.keys() == expected.keys():
        pairs: Any = ((f"{where}.{name}", found[name], expected[name]) for name in expected)
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        pairs = ((f"{where}[{place}]", *both) for place, both in enumerate(zip(found, expected, strict=True)))
    else:
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (found, expected))
        same = math.isclose(found, expected, abs_tol=TOLERANCE) if numbers else found == expected
        return None if same else f"exit code 0, but {where or 'it'} is {str(found)[:100]} and not {str(expected)[:100]}"
    return next((other for name, *both in pairs if (other := difference(*both, name))), None)


def result(outcome: Outcome, folder: Path) -> Any:
    """What came of a command in `folder`: the JSON that it printed, and the weights that it wrote."""
    written = [sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*ed/model.safetensors"))]
    return [*map(json.loads, outcome.output.splitlines()), *written]
