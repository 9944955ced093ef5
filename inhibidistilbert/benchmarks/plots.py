"""Figures of the results, as PNG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from .results import replacing


@dataclass(frozen=True)
class Panel:
    """One diagram: `series` holds for each rival a value for each place of `places`, None where there is none."""

    title: str
    places: Sequence[str]
    series: Mapping[str, Sequence[float | None]]


def bars(path: Path, panels: Sequence[Panel], label: str) -> None:
    """Grouped bars on a logarithmic scale, a panel below the other; a line at 1."""
    figure = Figure(figsize=(9, 2.6 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        width = 0.85 / max(len(panel.series), 1)
        for number, (name, values) in enumerate(panel.series.items()):
            known = [(place, value) for place, value in enumerate(values) if value is not None]
            axes.bar(
                [place + (number - (len(panel.series) - 1) / 2) * width for place, _ in known],
                [value for _, value in known],
                width,
                label=name,
            )
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(title=panel.title, yscale="log", ylabel=label, xticks=range(len(panel.places)))
        axes.set_xticklabels(panel.places)
        axes.legend(fontsize="x-small", ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def lines(path: Path, panels: Sequence[Panel], label: str, columns: int | None = None) -> None:
    """Lines on a logarithmic scale, `columns` panels a row; all of them in one where none is given."""
    columns = min(columns or len(panels), len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.5 * columns, 4.5 * rows), layout="constrained")
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        for name, values in panel.series.items():
            known = [(place, value) for place, value in enumerate(values) if value is not None]
            axes.plot([place for place, _ in known], [value for _, value in known], marker="o", markersize=3, label=name)
        axes.set(title=panel.title, yscale="log", ylabel=label, xticks=range(len(panel.places)))
        axes.set_xticklabels(panel.places)
        axes.legend(fontsize="x-small")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
