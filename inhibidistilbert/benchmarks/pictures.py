"""The pictures of the results, drawn from the JSON files of the tables alone."""

import json
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..support import plots
from ..support.errors import UserError, reason
from ..support.plots import Panel, Point

Row = dict[str, Any]

SUMMARY = "summary.png"
_BASELINE = "softmax fp32"
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
    """All pictures of the tables in `folder`, and the summary where there is what it is of. Raises `UserError` as `draw`."""
    for table in sorted(folder.glob("*.json")):
        draw(table)
    operators, models = folder / "cpu.json", folder / "model_cpu.json"
    if operators.is_file() and models.is_file():
        _save({SUMMARY: lambda: summary(_read(operators), _read(models))}, models)


def draw(table: Path) -> None:
    """The pictures of a table, beside it; there are none of some.

    table: the JSON file that `write_json` made.

    Raises:
        UserError: it cannot be read, or is not what its name says.
    """
    content = _read(table)
    found: dict[str, Callable[[], Figure | None]] = {}
    if table.stem == "cpu":
        found[""] = lambda: operators_cpu(content)
    elif table.stem == "kernels_gpu":
        found[""] = lambda: operators_gpu(content)
    elif table.stem.startswith("gpu_"):
        found[""] = lambda: gpu(content)
    elif table.stem in ("model_cpu", "model_gpu"):
        found[""] = lambda: models(content, "samples_per_second", "throughput_ratio", "texts a second")
        found["_energy"] = lambda: models(content, "joules_per_sample", "energy_ratio", "joules a text")
    _save({f"{table.stem}{end}.png": make for end, make in found.items()}, table)


def _read(table: Path) -> dict[str, Any]:
    try:
        return json.loads(table.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{str(table)!r} cannot be read: {reason(error)}.") from error


def _save(made: dict[str, Callable[[], Figure | None]], table: Path) -> None:
    for name, make in made.items():
        try:
            figure = make()
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(f"{str(table)!r} does not hold what {name} is drawn from: {reason(error)}.") from error
        if figure is not None:
            plots.save(figure, table.with_name(name))


# The pictures, each from the content of its file.


def operators_cpu(content: dict[str, Any]) -> Figure:
    """How many times as fast as softmax attention in float32, at the most threads, on the two levels that tell most."""
    threads = max(row["threads"] for row in content["results"])
    rows = [row for row in content["results"] if row["threads"] == threads and "not centred" not in row["rival"]]
    levels = [level for level in _LEVELS if any(row["level"] == level for row in rows)][:2]
    sizes = len({row["head_dim"] for row in rows}) > 1
    axis = "texts × tokens" + (", d: head size" if sizes else "")

    def place(row: Row) -> str:
        return _shape(row) + (f"\nd = {row['head_dim']}" if sizes else "")

    drawn = [row | {"point": _inverse(row, "ratio")} for row in rows if row["rival"] != _BASELINE]
    panels = [
        _panel([row for row in drawn if row["level"] == level], place, "rival", _LEVELS[level], _SPEED, axis)
        for level in levels
    ]
    first = [row for row in drawn if row["level"] == levels[0] and "inhibitor" in row["rival"]]
    spans = _spans((row["rival"].split()[1], row["point"][0]) for row in first)
    title = f"Speed against softmax in float32, {_LEVELS[levels[0]]}" + (f": {spans}" if spans else "")
    return plots.draw(title, f"{_machine(content, threads)}; {_QUANTILES}", panels, columns=1, bars=True)


def models(content: dict[str, Any], column: str, ratio: str, unit: str) -> Figure | None:
    """`column` by batch at the shortest length and by length at the smallest batch; None where it was not measured."""
    rows = [row | {"point": _point(row, column)} for row in content["results"] if row.get(column) is not None]
    threads = sorted({row["threads"] for row in rows})
    panels = []
    for dtype, number in dict.fromkeys((row["dtype"], row["threads"]) for row in rows):
        here = [row for row in rows if (row["dtype"], row["threads"]) == (dtype, number)]
        kind = dtype if len(threads) == 1 else f"{dtype}, threads: {number}"
        for by, axis, other, rest in (
            ("batch", "texts in a batch", "length", "texts of {} tokens"),
            ("length", "tokens a text", "batch", "batches of {}"),
        ):
            least = min(row[other] for row in here)
            chosen = sorted((row for row in here if row[other] == least), key=itemgetter(by))
            panels.append(_panel(chosen, itemgetter(by), "model", f"{kind}, {rest.format(least)}", unit, axis))
    if not panels:
        return None
    pairs = [row for row in content["ratios"] if (row["model"], row["peer"]) == ("inhibitor", "softmax_sdpa")]
    spans = _spans((row["dtype"], row[ratio]) for row in pairs if row.get(ratio))
    title = unit.capitalize() + (f", InhibiDistilBERT against DistilBERT, SDPA: {spans}" if spans else "")
    return plots.draw(title, _machine(content, *threads), panels)


def operators_gpu(content: dict[str, Any]) -> Figure:
    """Milliseconds by length, of each head size and pass."""
    rows = [
        row | {"point": _point(row, "ms"), "panel": f"{row['pass']}, heads of {row['head_dim']}"}
        for row in content["results"]
    ]
    panels = [
        _panel(
            [row for row in rows if row["panel"] == title], itemgetter("length"), "rival", title, "milliseconds", "tokens"
        )
        for title in dict.fromkeys(row["panel"] for row in rows)
    ]
    inhibitors = [row for row in rows if row["rival"] in ("inhibitor fp32", "inhibitor bf16") and row["pass"] == "forward"]
    spans = _spans((row["rival"].split()[1], row["ratio"]) for row in inhibitors if row["ratio"])
    title = "Attention alone on a GPU" + (f", time against softmax in float32, forward: {spans}" if spans else "")
    return plots.draw(title, _machine(content), panels)


def gpu(content: dict[str, Any]) -> Figure | None:
    """Milliseconds of the kernels by shape, and texts a second of the models by batch; None where there is neither."""
    panels = []
    for part, unit, label, axis, split in (
        ("kernels", "ms", "milliseconds", "texts × tokens", _kernel_setting),
        ("models", "texts/s", "texts a second", "texts in a batch", _model_setting),
    ):
        rows = [
            row | {"shape": split(row["setting"]), "point": (row["value"], row["low"], row["high"])}
            for row in content["results"]
            if (row["part"], row["unit"]) == (part, unit) and not row["setting"].startswith("float16")
        ]
        rows.sort(key=itemgetter("shape"))
        for title in dict.fromkeys(row["shape"][0] for row in rows):
            here = [row for row in rows if row["shape"][0] == title]
            panels.append(_panel(here, lambda row: row["shape"][2], "case", title, label, axis))
    title = "On a GPU: time of the attention, throughput of the model"
    return plots.draw(title, _machine(content), panels) if panels else None


def _kernel_setting(setting: str) -> tuple[str, int, str]:
    """Of `8×12×512×64, forward` the title, the triples, and `8×512`."""
    shape, name = setting.split(", ", 1)
    batch, heads, length, head_dim = map(int, shape.split("×"))
    return f"attention alone, {name}", batch * heads * length**2 * head_dim, f"{batch}×{length}"


def _model_setting(setting: str) -> tuple[str, int, str]:
    """Of `bfloat16, sentences, batch 8` the title, 8 and `8`."""
    dtype, texts, batch = setting.split(", ")
    number = batch.removeprefix("batch ")
    return f"whole model, {dtype}, {texts}", int(number), number


def summary(operators: dict[str, Any], comparison: dict[str, Any]) -> Figure | None:
    """Speed against softmax by length and precision, at the shapes and threads that both tables have, if any.

    A model is compared with DistilBERT in its own precision, attention in int8 with softmax in float32: torch has no other.
    """
    pairs = [row for row in comparison["ratios"] if row["peer"] == "softmax_sdpa"]
    rows = [row | {"point": _point(row, "throughput_ratio")} for row in pairs]
    rows += [
        row | {"model": "inhibitor, attention alone", "dtype": dtype, "point": _inverse(row, "ratio")}
        for row in operators["results"]
        for rival, dtype in (("inhibitor fp32", "float32"), ("inhibitor int8", "int8"))
        if (row["level"], row["rival"], row["head_dim"]) == ("operator", rival, 64)
    ]
    shape = itemgetter("threads", "length", "batch")
    common = set.intersection(*({shape(row) for row in rows if ("level" in row) == alone} for alone in (False, True)))
    if not common:
        return None
    threads = max(common)[0]
    rows = sorted((row for row in rows if shape(row) in common and row["threads"] == threads), key=shape)
    panels = [
        _panel([row for row in rows if row["dtype"] == dtype], _shape, "model", dtype, _SPEED, "texts × tokens")
        for dtype in sorted({row["dtype"] for row in rows})
    ]
    spans = _spans((row["dtype"], row["point"][0]) for row in rows if row["model"] == "inhibitor")
    title = f"Speed of InhibiDistilBERT against DistilBERT, SDPA: {spans}"
    note = f"{_machine(comparison, threads)}; {_QUANTILES}; attention alone in int8 is compared with softmax in float32"
    return plots.draw(title, note, panels, bars=True)


# What they share.


def _panel(rows: Sequence[Row], place: Callable[[Row], object], name: str, title: str, label: str, axis: str) -> Panel:
    """The `point` of each row; places and contenders, by the column `name`, in the order of the rows."""
    points = {(row[name], place(row)): row["point"] for row in rows}
    places = dict.fromkeys(map(place, rows))
    series = {each: [points.get((each, where)) for where in places] for each in dict.fromkeys(row[name] for row in rows)}
    return Panel(title, list(map(str, places)), series, axis, label)


def _shape(row: Row) -> str:
    return f"{row['batch']}×{row['length']}"


def _point(row: Row, column: str) -> Point | None:
    return None if row[column] is None else (row[column], row.get(f"{column}_p10"), row.get(f"{column}_p90"))


def _inverse(row: Row, column: str) -> Point:
    """How many times as fast, of a ratio of times."""
    return 1 / row[column], 1 / row[f"{column}_p90"], 1 / row[f"{column}_p10"]


def _spans(values: Iterable[tuple[str, float]]) -> str:
    """`0.92–1.05 in float32, 0.82–1.04 in int8`"""
    found: dict[str, list[float]] = {}
    for name, value in values:
        found.setdefault(plots.SHORT.get(name, name), []).append(value)
    return ", ".join(f"{min(group):.2f}–{max(group):.2f} in {name}" for name, group in found.items())


def _machine(content: dict[str, Any], *threads: int) -> str:
    """`AMD EPYC (avx2 fma), 2 threads`"""
    header = content["machine"]
    if header.get("gpu"):
        return header["gpu"]
    flags = f" ({header['cpu flags']})" if header.get("cpu flags") else ""
    return f"{header['cpu']}{flags}, {' and '.join(map(str, threads))} {'thread' if threads == (1,) else 'threads'}"
