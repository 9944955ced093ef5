"""The explanation as a picture: the text with its words coloured, the deletion curve, and the matrix of inhibition."""

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ..support import plots
from .result import Result, largest

_DPI = 100
# Inches. Texts stay narrow enough to read, the matrix grows with the words, so that each keeps a name that can be read.
_WIDTH, _MARGIN, _CURVE, _CELL, _LEAST_MATRIX = 9.0, 0.3, 1.8, 0.15, 5.0
_LETTERS = 14  # of a word beside the matrix
_LONGEST = 60  # letters in a row that are kept on one line
_FEW, _WITH_NUMBERS = 30, 12  # words with large names in the matrix; words with numbers in it
_FULLEST = 0.75  # of a colour, so that black letters stand out
_SHADES = LinearSegmentedColormap.from_list("inhibition", [plots.ORANGE, "white", plots.BLUE])
_SMALL, _LARGE = 11, 14  # sizes of letters


class Piece(NamedTuple):
    """A word to set: its effect as a share of the strongest, and whether there is a space before it."""

    text: str
    effect: float = 0.0
    space: bool = True


def write(result: Result, path: Path) -> None:
    """Draw it into a PNG file."""
    with warnings.catch_warnings(), matplotlib.rc_context(plots.LOOK):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box is shown for it
        _figure(result).savefig(path, dpi=_DPI)  # with all its shades, which a palette would mix up


def _figure(result: Result) -> Figure:
    words, scores = result.matrix()
    names = [_printable(word if len(word) <= _LETTERS else f"{word[: _LETTERS - 1]}…") for word in words]
    size = _SMALL if len(names) <= _FEW else 8
    matrix = max(_LEAST_MATRIX, _CELL * len(names))
    sheet = _Sheet(max(_WIDTH, matrix + 3.0))
    sheet.paragraph(result.answer(), _LARGE, weight="bold")
    for warning in result.warnings():
        sheet.paragraph(warning, color=plots.VERMILION)
    sheet.set(_pieces(result), _LARGE)
    sheet.paragraph(f"Blue, solid line: raises the {result.measure}. Orange, dashed line: lowers it. {result.total()}")
    sheet.top += _MARGIN
    _draw_deletion(sheet.panel(_CURVE, left=1.0, width=5.0, below=0.7), result)
    sheet.paragraph(result.deletion_told())
    sheet.top += _MARGIN
    sheet.paragraph(f"Who inhibits whom: {result.place()}", _LARGE, weight="bold")
    sheet.paragraph(result.meaning())
    room = max(sheet.measured(name, FontProperties(size=size)) for name in names) + 0.4
    sheet.top += room
    _draw_matrix(sheet.panel(matrix, left=room + _MARGIN, width=matrix), names, scores, size)
    return sheet.finished()


class _Sheet:
    """A figure that is filled from top to bottom; `top` is where what comes next begins, in inches from the upper edge."""

    def __init__(self, width: float) -> None:
        self.width, self.top = width, _MARGIN
        self.figure = Figure(figsize=(width, 1.0), dpi=_DPI)
        self.renderer = FigureCanvasAgg(self.figure).get_renderer()
        self.axes = self.figure.add_axes((0, 0, 1, 1))  # its units are inches, upwards
        self.axes.set_axis_off()

    def paragraph(self, text: str, size: int = _SMALL, **look: str) -> None:
        self.set([Piece(word) for word in text.split()], size, **look)

    def set(self, pieces: Iterable[Piece], size: int, **look: str) -> None:
        """Words in lines, with colours and lines where they have an effect."""
        font = FontProperties(size=size, weight=look.get("weight"))
        line, space, x = size / 72 * 1.7, size / 72 * 0.3, _MARGIN
        for text, effect, spaced in pieces:
            width = self.measured(text, font)
            x += space if spaced and x > _MARGIN else 0
            if x + width > _WIDTH - _MARGIN:
                self.top, x = self.top + line, _MARGIN
            if effect:
                color, dashes = (plots.BLUE, "-") if effect > 0 else (plots.ORANGE, (0, (2, 1)))
                base = -self.top - 0.85 * line
                box = Rectangle((x, base), width, 0.8 * line, color=color, alpha=0.65 * abs(effect), linewidth=0)
                self.axes.add_patch(box)
                self.axes.plot([x, x + width], [base, base], color=color, linestyle=dashes, alpha=abs(effect), linewidth=2)
            self.axes.text(x, -self.top - 0.65 * line, text, fontproperties=font, color=look.get("color", "black"))
            x += width
        self.top += line + 0.1

    def measured(self, text: str, font: FontProperties) -> float:
        """Its width in inches."""
        return self.renderer.get_text_width_height_descent(text, font, ismath=False)[0] / self.figure.dpi

    def panel(self, height: float, left: float, width: float, below: float = _MARGIN) -> Axes:
        """A diagram, with so much room `below` it."""
        self.top += height
        axes = self.axes.inset_axes((left, -self.top, width, height), transform=self.axes.transData)
        self.top += below
        return axes

    def finished(self) -> Figure:
        self.figure.set_figheight(self.top + _MARGIN)
        self.axes.set(xlim=(0, self.width), ylim=(-self.top - _MARGIN, 0))
        return self.figure


def _pieces(result: Result) -> Iterable[Piece]:
    """The text, and at its end what was not read."""
    strongest = max(map(abs, result.effects.words)) or 1
    end = 0
    for word, effect in zip(result.words, result.effects.words, strict=True):
        yield from _plain(result.text[end : word.start])
        space = result.text[end : word.start][-1:].isspace()
        for place in range(0, len(word.text), _LONGEST):
            yield Piece(_printable(word.text[place : place + _LONGEST]), effect / strongest, space and not place)
        end = word.end
    if rest := result.text[end:].strip():
        yield from _plain(f" … ({len(rest)} characters that are not read)" if result.cut else result.text[end:])


def _plain(text: str) -> Iterable[Piece]:
    """What is no word."""
    for match in re.finditer(r"(\s*)(\S+)", text):
        yield Piece(_printable(match[2])[:_LONGEST], 0.0, bool(match[1]))


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def _draw_deletion(axes: Axes, result: Result) -> None:
    deletion = result.deletion
    axes.plot(deletion.removed, deletion.scores, color=plots.BLUE, linewidth=2.5, label="by effect")
    axes.plot(deletion.removed, deletion.random, color="black", linestyle="--", label="in random order, mean of ten")
    axes.set_xlabel("words hidden", fontsize=_SMALL)
    axes.set_ylabel("value" if result.regression else "probability", fontsize=_SMALL)
    if not result.regression:
        axes.set_ylim(0, 1)
    axes.tick_params(labelsize=_SMALL)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=_SMALL)


def _draw_matrix(axes: Axes, names: Sequence[str], scores: Sequence[Sequence[float]], size: int) -> None:
    limit = (largest(scores) or 1) / _FULLEST
    axes.imshow(scores, cmap=_SHADES, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=2)
    axes.set_xlabel("read from", fontsize=_SMALL)
    axes.set_ylabel("reads", fontsize=_SMALL)
    if len(names) <= _WITH_NUMBERS:
        for row, values in enumerate(scores):
            for column, value in enumerate(values):
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9)
