"""The explanation as HTML that needs nothing else: no script, and nothing from another host."""

from collections.abc import Iterator, Sequence
from importlib.resources import files

import jinja2
from markupsafe import Markup

from .result import Result, largest, signed

# Up to so many words the matrix shows its numbers; of more it shows colours, and a number under the pointer.
_WITH_NUMBERS = 16
_SHADES = 10
_PAGE = """<!DOCTYPE html>
<html lang="und"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>:root { color-scheme: light dark } body { margin: 0 }</style></head>
<body>{{ fragment }}</body></html>
"""
_ENVIRONMENT = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)


def page(result: Result) -> str:
    """A whole document."""
    inner = Markup(fragment(result))  # has been escaped
    return _ENVIRONMENT.from_string(_PAGE).render(title=f"{result.label}: explained", fragment=inner)


def fragment(result: Result) -> str:
    """What stands in the body; its styles reach nothing around it."""
    template = _ENVIRONMENT.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    deletion = result.deletion
    words, scores = result.matrix()
    fullest = largest(scores) or 1
    curves = *deletion.scores, *deletion.random
    low, high = (min(curves), max(curves)) if result.regression else (0, 1)
    return template.render(
        result=result,
        spans=list(_spans(result)),
        rest=result.text[result.words[-1].end :],
        ranked=[(word, signed(effect)) for word, effect in result.ranked()],
        points=_points(deletion.removed, deletion.scores, low, high),
        random_points=_points(deletion.removed, deletion.random, low, high),
        low=f"{low:.3g}",
        high=f"{high:.3g}",
        columns=words,
        rows=[(word, [_cell(value, fullest) for value in row]) for word, row in zip(words, scores, strict=True)],
        numbers=len(words) <= _WITH_NUMBERS,
    )


def _spans(result: Result) -> Iterator[tuple[str, str, str, str, str]]:
    """For each word the text before it, itself, its effect, the direction, and the share of the strongest effect."""
    strongest = max(map(abs, result.effects.words)) or 1
    end = 0
    for word, effect in zip(result.words, result.effects.words, strict=True):
        kind = "for" if effect > 0 else "against"
        yield result.text[end : word.start], word.text, signed(effect), kind, f"{abs(effect) / strongest:.2f}"
        end = word.end


def _points(places: Sequence[int], values: Sequence[float], low: float, high: float) -> str:
    """Of a line in the picture's field, 45 to 350 from left to right and 10 to 150 from top to bottom."""
    across, up = places[-1] or 1, (high - low) or 1
    return " ".join(
        f"{45 + 305 * place / across:.1f},{150 - 140 * (value - low) / up:.1f}"
        for place, value in zip(places, values, strict=True)
    )


def _cell(value: float, fullest: float) -> tuple[str, str]:
    """Its shade and its number."""
    return f"{'n' if value < 0 else 'z'}{round(_SHADES * abs(value) / fullest)}", f"{value:.2f}"
