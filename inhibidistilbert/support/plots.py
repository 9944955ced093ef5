"""How every picture of the project looks: names, colours, scales; readable at half its size."""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter
from PIL import Image

from .files import replacing

# Okabe and Ito's colours, which the colour-blind tell apart.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
OTHERS = ("#CC79A7", "#56B4E9", "#000000", "#8C8C8C")
COLORS = (OTHERS[2], BLUE, ORANGE, GREEN, VERMILION, *OTHERS[:2])
_LINES = ("-", "--", ":", "-.")
# What the tables call a model, or an operator without its precision: its name for people, and its colour.
MODELS = {
    "inhibitor": ("InhibiDistilBERT", BLUE),
    "softmax_sdpa": ("DistilBERT, SDPA", ORANGE),
    "softmax_eager": ("DistilBERT, eager", GREEN),
    "authors_cdist": ("authors' formulation", VERMILION),
    "torch_compile": ("DistilBERT, torch.compile", OTHERS[0]),
    "openvino": ("OpenVINO", OTHERS[1]),
    "onnxruntime": ("ONNX Runtime", OTHERS[2]),
}
OPERATORS = {
    "inhibitor": ("inhibitor", BLUE),
    "softmax": ("softmax, SDPA", ORANGE),
    "inhibitor, gate": ("inhibitor, gate", GREEN),
    "inhibitor, composed with cdist": ("authors' formulation", VERMILION),
    "inhibitor, definition under torch.compile": ("definition, torch.compile", OTHERS[0]),
    "distances, torch.cdist": ("distances alone, torch.cdist", OTHERS[1]),
}
# Precisions and ways to run a model: the line, and the pattern of the bar.
_VARIANTS = {
    "bfloat16": ("--", "//"),
    "int8": (":", "..."),
    "float16": ("-.", "xx"),
    "CUDA graph": ("--", ""),
    "torch.compile": (":", ""),
    "torch.compile + CUDA graph": ("-.", ""),
    "attention alone": ("-", "//"),
}
SHORT = {"fp32": "float32", "bf16": "bfloat16"}
LOOK: dict[Any, Any] = {
    "font.size": 13,
    "figure.titlesize": 14,
    "figure.titleweight": "bold",
    "axes.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "hatch.color": "white",
    "errorbar.capsize": 3,
    "text.parse_math": False,
    "legend.frameon": False,
    "legend.title_fontsize": 12,
}

# A median, and its 10 % and 90 % quantiles where there are any.
Point = tuple[float, float | None, float | None]


@dataclass(frozen=True)
class Panel:
    """One diagram: `series` holds for each peer a point for each place of `places`, None where there is none."""

    title: str
    places: Sequence[str]
    series: Mapping[str, Sequence[Point | None]]
    axis: str = ""
    label: str = ""


@dataclass(frozen=True)
class Style:
    """How a peer is drawn, and what it is called."""

    label: str
    color: str
    line: str = "-"
    hatch: str = ""


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Those of the tables' names, such as `inhibitor`, `softmax_sdpa@int8`, `inhibitor, CUDA graph` or `softmax bf16`."""
    others = cycle(OTHERS)
    return {name: _style(name) or Style(name[-45:].lstrip("_"), next(others)) for name in dict.fromkeys(names)}


def _style(name: str) -> Style | None:
    operator = re.fullmatch(r"(\w+) (fp32|bf16|int8)(.*)", name)
    model = re.fullmatch(rf"({'|'.join(MODELS)})(?:(?:@|, )(.+))?", name)
    if operator:
        key, variant, table = operator[1] + operator[3], SHORT.get(operator[2], operator[2]), OPERATORS
    elif model:
        key, variant, table = model[1], model[2], MODELS
    else:
        return None
    if key not in table:
        return None
    label, color = table[key]
    return Style(f"{label}, {variant}" if variant else label, color, *_VARIANTS.get(variant or "", ("-", "")))


@matplotlib.rc_context(LOOK)
def draw(title: str, note: str, panels: Sequence[Panel], *, columns: int = 2, bars: bool = False) -> Figure:
    """A figure of `columns` panels a row on logarithmic scales, with a legend for all of them and a note below.

    bars: grouped, from 1 up or down, instead of lines.
    """
    same = len({panel.label for panel in panels}) == 1
    figure, grid = _grid(len(panels), columns, sharey=("all" if bars else "row") if same else False)
    looks = styles(name for panel in panels for name in panel.series)
    for axes, panel in zip(grid, panels, strict=True):
        axes.set(title=panel.title, yscale="log", xlabel=panel.axis, ylabel=panel.label)
        _places(axes, panel.places, 60 // min(columns, len(panels)))
        for number, (name, points) in enumerate(panel.series.items()):
            _series(axes, points, number - (len(panel.series) - 1) / 2, len(panel.series), looks[name], bars)
        if bars:
            axes.axhline(1, color="black", linewidth=1.5)
    for number, axes in enumerate(grid):
        _ticks(axes)
        if same and number % columns:
            axes.set_ylabel("")
    return _finished(figure, title, note)


@matplotlib.rc_context(LOOK)
def curves(title: str, points: Mapping[tuple[str, str], Sequence[tuple[float, float]]]) -> Figure:
    """Lines on linear scales: steps and values by the title of the panel and the name; a name looks the same in all."""
    titles, names = (list(dict.fromkeys(key[place] for key in points)) for place in (0, 1))
    looks = dict(zip(names, product(_LINES, COLORS), strict=False))
    figure, grid = _grid(len(titles), 2)
    for (panel, name), line in points.items():
        axes, (dashes, color) = grid[titles.index(panel)], looks[name]
        marker = "o" if len(line) < 20 else ""
        axes.plot(*zip(*line, strict=True), color=color, linestyle=dashes, marker=marker, label=name)
        axes.set(title=panel, xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:.6g}"))
    return _finished(figure, title)


def _grid(count: int, columns: int, **shared: Any) -> tuple[Figure, list[Axes]]:
    """So many panels, `columns` a row."""
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    figure = Figure(figsize=(9, 1.3 + 2.9 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, **shared).flat) if count else []
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def _finished(figure: Figure, title: str, note: str = "") -> Figure:
    """With a title, and below everything the note and a legend of all panels."""
    entries: dict[Any, Any] = {}
    for axes in figure.axes:
        entries |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.suptitle(textwrap.fill(title, 75), x=0.01, ha="left")
    renderer, width, rows = FigureCanvasAgg(figure).get_renderer(), figure.bbox.width, 0
    for rows in range(1, len(entries) + 1):
        legend = figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower left",
            alignment="left",
            title=textwrap.fill(note, 95) or None,
            ncols=-(-len(entries) // rows),
        )
        if legend.get_window_extent(renderer).width <= width:
            break
        if rows < len(entries):
            legend.remove()
    figure.set_figheight(figure.get_figheight() + 0.28 * rows)
    return figure


def _places(axes: Axes, places: Sequence[str], letters: int) -> None:
    """A label a place, upright where they are too many to stand side by side."""
    crowded = sum(1 + max(map(len, place.split("\n"))) for place in places) > letters
    axes.set_xticks(range(len(places)), places, rotation=90 if crowded else 0)
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.grid(visible=False, axis="x")


def _ticks(axes: Axes) -> None:
    """At least three plain numbers where there is room: powers of ten, or with 2 and 5 between, or round ones."""
    low, high = axes.get_ylim()
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    choices = (
        powers,
        [step * x for x in powers for step in (1, 2, 5)],
        MaxNLocator(4, steps=(1, 2, 5, 10)).tick_values(low, high),
    )
    inside = [[x for x in ticks if low <= x <= high] for ticks in choices]
    axes.set_yticks(next((ticks for ticks in inside if len(ticks) > 2), inside[-1]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.6g}"))


def _series(axes: Axes, points: Sequence[Point | None], shift: float, count: int, style: Style, bars: bool) -> None:
    known = [(place, *point) for place, point in enumerate(points) if point is not None]
    if not known:
        return
    width = min(0.85 / count, 0.25) if bars else 0.3 / count
    places, medians, lows, highs = (np.array(column, dtype=float) for column in zip(*known, strict=True))
    where = places + shift * width
    errors = None if np.isnan(lows).any() else [medians - lows, highs - medians]
    if bars:
        axes.bar(where, medians - 1, width, 1, label=style.label, color=style.color, hatch=style.hatch)
        axes.errorbar(where, medians, errors, color="black", linestyle="", marker="o", markerfacecolor=style.color)
    else:
        axes.errorbar(where, medians, errors, label=style.label, color=style.color, linestyle=style.line, marker="o")


@matplotlib.rc_context(LOOK)
def save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)
        with Image.open(temporary) as image:
            image.convert("RGB").quantize().save(temporary)  # a palette: a third of the size
