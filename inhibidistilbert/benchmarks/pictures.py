"""The pictures of the results, drawn from the JSON files of the tables alone."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from functools import partial
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from ..support import plots
from ..support.benchmark_results import CpuResults, CpuRow, KernelResults, ModelResults, ModelRow, RatioRow, Shape
from ..support.errors import UserError, reason
from ..support.plots import Panel, Point
from ..support.results import Quantiles, Results
from .gpu.findings import GpuResults
from .operators import BASELINE
from .static import StaticResults

Value = Quantiles | Point | float | None
Dot = tuple[str, object, Value]  # of a peer, at a place

_SPEED = "speed (softmax = 1)"
_QUANTILES = "medians, with 10 % and 90 % quantiles of the rounds"
# The levels that tell most come first: two are drawn, of those there are.
_LEVELS = {
    "operator": "attention alone, inference",
    "training": "attention alone, forward and backward",
    "model": "whole model",
    "layer": "one layer",
    "fallback": "attention alone, plain torch",
}


def redraw(folder: Path) -> None:
    """All pictures of the tables in `folder`, and a summary for each processor that has both tables of it.

    Raises:
        UserError: as `draw`.
    """
    for table in sorted(folder.glob("*.json")):
        draw(table)
    for operators in sorted(folder.glob("cpu*.json")):
        models = operators.with_name(f"model_{operators.name}")
        if models.is_file():
            picture = folder / f"summary{operators.stem.removeprefix('cpu')}.png"
            _save(picture, partial(summary, CpuResults.read(operators)), ModelResults.read(models), models)


def draw(table: Path) -> None:
    """The pictures of a table, beside it; there are none of some.

    table: the JSON file that `Results.write` made.

    Raises:
        UserError: it cannot be read, or is not what its name says.
    """
    if kind := kind_of(table):
        results = kind.file.read(table)
        for end, make in kind.pictures.items():
            _save(table.with_name(f"{table.stem}{end}.png"), make, results, table)


def _save(picture: Path, make: Callable[..., Figure | None], results: Results, table: Path) -> None:
    try:
        figure = make(results)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise UserError(f"{str(table)!r} does not hold what {picture.name} is drawn from: {reason(error)}.") from error
    if figure is not None:
        plots.save(figure, picture)


# The pictures, each from the content of its file.


def operators_cpu(content: CpuResults) -> Figure:
    """How many times as fast as softmax attention in float32, at the most threads, on the two levels that tell most."""
    threads = max(row.threads for row in content.results)
    rows = [row for row in content.results if row.threads == threads and "," not in row.peer]
    levels = [level for level in _LEVELS if any(row.level == level for row in rows)][:2]
    sizes = len({row.shape.head_dim for row in rows}) > 1
    axis = "texts × tokens" + (", d: head size" if sizes else "")

    def place(shape: Shape) -> str:
        return f"{shape.tokens}\nd = {shape.head_dim}" if sizes else str(shape.tokens)

    drawn = [row for row in rows if row.peer != BASELINE]
    panels = []
    for level in levels:
        dots = [(row.peer, place(row.shape), _faster(row)) for row in drawn if row.level == level]
        panels.append(_panel(dots, _LEVELS[level], _SPEED, axis))
    first = [row for row in drawn if row.level == levels[0] and "inhibitor" in row.peer]
    spans = _spans((row.peer.split()[1], 1 / row.ratio.median) for row in first)
    title = f"Speed against softmax in float32, {_LEVELS[levels[0]]}" + (f": {spans}" if spans else "")
    return plots.draw(title, f"{_machine(content, threads)}; {_QUANTILES}", panels, columns=1, bars=True)


def models(
    content: ModelResults,
    unit: str,
    figure: Callable[[ModelRow], Value],
    ratio: Callable[[RatioRow], Quantiles | None],
) -> Figure | None:
    """A figure by batch and one by length, the other at what has the most points; None where it was not measured."""
    rows = [row for row in content.results if figure(row) is not None]
    threads = sorted({row.setting.threads for row in rows})
    panels = []
    for dtype, number in dict.fromkeys((row.setting.dtype, row.setting.threads) for row in rows):
        here = [row for row in rows if (row.setting.dtype, row.setting.threads) == (dtype, number)]
        kind = dtype if len(threads) == 1 else f"{dtype}, threads: {number}"
        for by, axis, other, rest in (
            (attrgetter("batch"), "texts in a batch", attrgetter("length"), "texts of {} tokens"),
            (attrgetter("length"), "tokens a text", attrgetter("batch"), "batches of {}"),
        ):
            points = {(other(row.setting.tokens), by(row.setting.tokens)) for row in here}
            counts = Counter(fixed for fixed, _ in points)
            most = min(counts, key=lambda fixed: (-counts[fixed], fixed))
            dots = [(row.peer, by(row.setting.tokens), figure(row)) for row in here if other(row.setting.tokens) == most]
            panels.append(_panel(sorted(dots, key=itemgetter(1)), f"{kind}, {rest.format(most)}", unit, axis))
    if not panels:
        return None
    pairs = [row for row in content.ratios if (row.model, row.peer) == ("inhibitor", "softmax_sdpa")]
    spans = _spans((row.setting.dtype, known.median) for row in pairs if (known := ratio(row)))
    title = unit.capitalize() + (f", InhibiDistilBERT against DistilBERT, SDPA: {spans}" if spans else "")
    return plots.draw(title, _machine(content, *threads), panels)


throughput = partial(models, unit="texts a second", figure=attrgetter("throughput"), ratio=attrgetter("throughput"))
energy = partial(models, unit="joules a text", figure=attrgetter("joules"), ratio=attrgetter("energy"))


def operators_gpu(content: KernelResults) -> Figure:
    """Milliseconds by length, of each head size and pass."""
    dots: dict[str, list[Dot]] = {}
    for row in content.results:
        dot = (row.peer, row.shape.length, row.milliseconds)
        dots.setdefault(f"{row.pass_name}, heads of {row.shape.head_dim}", []).append(dot)
    panels = [_panel(each, title, "milliseconds", "tokens") for title, each in dots.items()]
    inhibitors = [row for row in content.results if row.peer in ("inhibitor fp32", "inhibitor bf16")]
    spans = _spans((row.peer.split()[1], row.ratio.median) for row in inhibitors if row.ratio and row.pass_name == "forward")
    title = "Attention alone on a GPU" + (f", time against softmax in float32, forward: {spans}" if spans else "")
    return plots.draw(title, _machine(content), panels)


def gpu(content: GpuResults) -> Figure | None:
    """Milliseconds of the kernels by shape, and texts a second of the models by batch; None where there is neither."""
    panels = []
    for part, unit, label, axis, split in (
        ("kernels", "ms", "milliseconds", "texts × tokens", _kernel_setting),
        ("models", "texts/s", "texts a second", "texts in a batch", _model_setting),
    ):
        rows = [
            (split(row.setting), row.case, (row.value, row.low, row.high))
            for row in content.results
            if (row.part, row.unit) == (part, unit) and row.value is not None and not row.setting.startswith("float16")
        ]
        dots: dict[str, list[Dot]] = {}
        for (title, _, place), peer, point in sorted(rows, key=itemgetter(0)):
            dots.setdefault(title, []).append((peer, place, point))
        panels += [_panel(each, title, label, axis) for title, each in dots.items()]
    title = "On a GPU: time of the attention, throughput of the model"
    return plots.draw(title, _machine(content), panels) if panels else None


def _kernel_setting(setting: str) -> tuple[str, int, str]:
    """Of `8×12×512×64, forward` the title, the triples, and `8×512`."""
    text, name = setting.split(", ", 1)
    shape = Shape(*map(int, text.split("×")))
    return f"attention alone, {name}", shape.triples, str(shape.tokens)


def _model_setting(setting: str) -> tuple[str, int, str]:
    """Of `bfloat16, sentences, batch 8` the title, 8 and `8`."""
    dtype, texts, batch = setting.split(", ")
    number = batch.removeprefix("batch ")
    return f"whole model, {dtype}, {texts}", int(number), number


def summary(operators: CpuResults, comparison: ModelResults) -> Figure | None:
    """Speed against softmax by length and precision, at the shapes and threads that both tables have, if any.

    A model is compared with DistilBERT in its own precision, attention in int8 with softmax in float32: torch has no other.
    """
    models = [
        (row.setting.threads, row.setting.tokens, row.setting.dtype, row.model, row.throughput)
        for row in comparison.ratios
        if row.peer == "softmax_sdpa"
    ]
    dtypes = {"inhibitor fp32": "float32", "inhibitor int8": "int8"}
    alone = [
        (row.threads, row.shape.tokens, dtypes[row.peer], "inhibitor, attention alone", _faster(row))
        for row in operators.results
        if row.level == "operator" and row.peer in dtypes and row.shape.head_dim == 64
    ]
    common = {row[:2] for row in models} & {row[:2] for row in alone}
    if not common:
        return None
    threads = max(number for number, _ in common)
    rows = [row for row in (*models, *alone) if row[:2] in common and row[0] == threads]
    rows.sort(key=lambda row: (row[1].length, row[1].batch))
    panels = []
    for dtype in sorted({row[2] for row in rows}):
        dots = [(name, str(tokens), speed) for _, tokens, kind, name, speed in rows if kind == dtype]
        panels.append(_panel(dots, dtype, _SPEED, "texts × tokens"))
    spans = _spans((dtype, speed.median) for _, _, dtype, name, speed in rows if name == "inhibitor")
    title = f"Speed of InhibiDistilBERT against DistilBERT, SDPA: {spans}"
    note = f"{_machine(comparison, threads)}; {_QUANTILES}; attention alone in int8 is compared with softmax in float32"
    return plots.draw(title, note, panels, bars=True)


class Kind(NamedTuple):
    """A kind of file: its class, and what is drawn of it, by the end of a picture's name."""

    file: type[Results]
    pictures: Mapping[str, Callable[[Any], Figure | None]]


_KINDS = {
    "cpu*": Kind(CpuResults, {"": operators_cpu}),
    "kernels_gpu": Kind(KernelResults, {"": operators_gpu}),
    "kernels_static": Kind(StaticResults, {}),
    "model_[cg]pu*": Kind(ModelResults, {"": throughput, "_energy": energy}),
    "gpu_*": Kind(GpuResults, {"": gpu}),
}


def kind_of(table: Path) -> Kind | None:
    """By its name; None for a file that is not of the benchmarks."""
    return next((kind for pattern, kind in _KINDS.items() if fnmatch(table.stem, pattern)), None)


# What they share.


def _panel(dots: Iterable[Dot], title: str, label: str, axis: str) -> Panel:
    """Places and peers in the order of the dots."""
    points = {(peer, place): _point(value) for peer, place, value in dots}
    peers, places = dict.fromkeys(peer for peer, _ in points), dict.fromkeys(place for _, place in points)
    series = {peer: [points.get((peer, place)) for place in places] for peer in peers}
    return Panel(title, list(map(str, places)), series, axis, label)


def _point(value: Value) -> Point | None:
    if isinstance(value, Quantiles):
        return value.median, value.low, value.high
    return (value, None, None) if isinstance(value, int | float) else value


def _faster(row: CpuRow) -> Quantiles:
    """How many times as fast as softmax."""
    return Quantiles(1 / row.ratio.high, 1 / row.ratio.median, 1 / row.ratio.low)


def _spans(values: Iterable[tuple[str, float]]) -> str:
    """`0.92–1.05 in float32, 0.82–1.04 in int8`"""
    found: dict[str, list[float]] = {}
    for name, value in values:
        found.setdefault(plots.SHORT.get(name, name), []).append(value)
    return ", ".join(f"{min(group):.2f}–{max(group):.2f} in {name}" for name, group in found.items())


def _machine(content: Results, *threads: int) -> str:
    """`AMD EPYC (avx2 fma), 2 threads`"""
    if content.machine.get("gpu"):
        return content.device
    flags = f" ({flags})" if (flags := content.machine.get("cpu flags")) else ""
    return f"{content.device}{flags}, {' and '.join(map(str, threads))} {'thread' if threads == (1,) else 'threads'}"
