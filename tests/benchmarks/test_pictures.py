"""Pictures can be read at half their size, tell models apart in the same way, and are drawn from the tables alone."""

import csv
import shutil
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure

from inhibidistilbert.benchmarks import cpu, kernels_gpu, peers, pictures
from inhibidistilbert.benchmarks.gpu import models
from inhibidistilbert.benchmarks.gpu.execution import MODES
from inhibidistilbert.benchmarks.gpu.findings import Finding, GpuResults
from inhibidistilbert.benchmarks.index import INDEX, renew
from inhibidistilbert.benchmarks.operators import FORWARD, TRAINING
from inhibidistilbert.distillation.curves import curves_figure
from inhibidistilbert.support import plots
from inhibidistilbert.support.benchmark_results import CpuResults, KernelResults, KernelRow, ModelResults, Shape, Tokens
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.results import Quantiles

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
GPU = {"gpu": "a device"}
MACHINE = '{"machine": {"cpu": "a processor", "date": "2026-01-31"}, "results": %s}'


def operators() -> CpuResults:
    return CpuResults.read(RESULTS / "cpu_avx2.json")


def comparison() -> ModelResults:
    return ModelResults.read(RESULTS / "model_cpu_avx2.json")


@cache
def names_of_peers() -> tuple[str, ...]:
    return tuple(kernels_gpu.peers())


def kernels_table() -> KernelResults:
    rows = [
        KernelRow(
            name,
            Shape(8, 12, length, 64),
            peer,
            milliseconds=Quantiles(*(length**2 * scale * 1e-6 for scale in (1, 2, 3))),
            ratio=Quantiles(1.5, 1.5, 1.5),
        )
        for name in (FORWARD, TRAINING)
        for length in kernels_gpu.LENGTHS
        for peer in names_of_peers()
    ]
    return KernelResults(GPU, rows)


def gpu_table() -> GpuResults:
    kernels = [
        ("kernels", peer, f"{shape}×64, {name}", "ms")
        for shape in ("1×12×128", "32×12×128", "8×12×512", "8×12×1024", "8×12×2048", "8×12×4096")
        for name in (FORWARD, TRAINING)
        for peer in names_of_peers()
    ]
    served = [
        ("models", f"{name}, {mode}", str(place), "texts/s")
        for place in models.PLACES
        for mode in MODES
        for name in (peers.INHIBITOR, models.PEER)
    ]
    rows = [
        Finding(case, setting, "figure", 2.0, unit, 0.3, 700.0, part=part)
        for part, case, setting, unit in (*kernels, *served)
    ]
    return GpuResults(GPU, rows, [], [])


def energy_table() -> ModelResults:
    table = comparison()
    rows = [replace(row, joules=1 / row.throughput.median) for row in table.results]
    ratios = [replace(row, energy=Quantiles(0.9, 0.9, 0.9)) for row in table.ratios]
    return replace(table, results=rows, ratios=ratios)


def curves_records() -> list[dict]:
    steps = range(1000, 200001, 1000)
    terms = {f"unexplained_{layer}": 0.1 for layer in range(12)}
    losses = [{"stage": stage, "step": step, "loss": 1000 / step, **terms} for stage in ("align", "task") for step in steps]
    scores = {"eval_loss": 0.3, "eval_accuracy": 0.8, "eval_runtime": 3.0}
    return [*losses, {"stage": "task", "step": 200000, **scores}, {"stage": "task", "step": 200000, "train_runtime": 9.0}]


FIGURES = {
    "summary": lambda: pictures.summary(operators(), comparison()),
    "cpu": lambda: pictures.operators_cpu(operators()),
    "model": lambda: pictures.throughput(comparison()),
    "kernels": lambda: pictures.operators_gpu(kernels_table()),
    "gpu": lambda: pictures.gpu(gpu_table()),
}
WITHOUT_QUANTILES = {
    "energy": lambda: pictures.energy(energy_table()),
    "curves": lambda: curves_figure(curves_records()),
}
everything = pytest.mark.parametrize("name", [*FIGURES, *WITHOUT_QUANTILES])
with_quantiles = pytest.mark.parametrize("name", FIGURES)


@cache  # drawing takes the time here, and the tests only look
def figure_of(name: str) -> Figure:
    return (FIGURES | WITHOUT_QUANTILES)[name]()


@everything
def test_labels_are_plain_and_apart(name: str):
    figure = figure_of(name)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, whole = canvas.get_renderer(), figure.bbox.padded(1)
    for axes in figure.axes:
        assert axes.get_title()
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()) if low <= tick.get_loc() <= high]
            shown = [tick.label1 for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]
            assert axes.xaxis is axis or len(shown) > 2 or not axis.get_tick_params().get("labelleft", True)
            for label in shown:
                assert not {"$", "^", "e"} & set(label.get_text().replace("head", "")), label
            boxes = [label.get_window_extent(renderer) for label in shown]
            assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    panels = [axes.get_tightbbox(renderer) for axes in figure.axes]
    (legend,) = figure.legends
    parts = [*panels, legend.get_window_extent(renderer), figure._suptitle.get_window_extent(renderer)]
    assert figure._suptitle.get_text()
    assert not any(one.overlaps(other) for one, other in combinations(parts, 2))
    assert all(whole.x0 <= part.x0 and part.x1 <= whole.x1 and whole.y0 <= part.y0 and part.y1 <= whole.y1 for part in parts)
    sizes = [
        text.get_fontsize() for text in (*legend.get_texts(), *(x for axes in figure.axes for x in axes.get_xticklabels()))
    ]
    assert figure.bbox.width == 900
    assert min(sizes) >= 13


@with_quantiles
def test_a_model_has_its_colour_and_its_name_everywhere(name: str):
    table = dict((*plots.MODELS.values(), *plots.OPERATORS.values()))
    for axes in figure_of(name).axes:
        named = [each for each in axes.containers if not each.get_label().startswith("_")]
        assert named
        for each in named:
            color = each[0].get_facecolor() if isinstance(each, BarContainer) else each.lines[0].get_color()
            model = max((model for model in table if each.get_label().startswith(model)), key=len)
            assert to_hex(color).upper() == table[model]


@with_quantiles
def test_quantiles_are_drawn(name: str):
    for axes in figure_of(name).axes:
        drawn = [each for each in axes.containers if isinstance(each, ErrorbarContainer)]
        assert drawn
        assert all(each.has_yerr for each in drawn)


def test_names_of_the_benchmarks_are_told_apart():
    attention = [name for name in (*cpu.OPERATORS, *names_of_peers()) if "," not in name]
    ways = [f"{name}, {mode}" for name in (peers.INHIBITOR, models.PEER) for mode in MODES]
    known = {label for label, _ in (*plots.MODELS.values(), *plots.OPERATORS.values())}
    for names in (attention, peers.NAMED, ways):
        looks = plots.styles(names)
        assert all(any(look.label.startswith(label) for label in known) for look in looks.values())
        assert len({look.label for look in looks.values()}) == len(looks)
        assert len({(look.color, look.line, look.hatch) for look in looks.values()}) == len(looks)
    others = plots.styles(["runs/one", "runs/two"])
    assert others["runs/one"].color != others["runs/two"].color


def test_what_was_not_measured_is_a_gap():
    panel = plots.Panel("operator", ["64", "128"], {"inhibitor fp32": [(1.0, 0.9, 1.1), None], "softmax fp32": [None, None]})
    (axes,) = plots.draw("title", "note", [panel]).axes
    assert [len(each.lines[0].get_xdata()) for each in axes.containers] == [1]


def test_numbers_of_threads_are_told_apart():
    table = comparison()
    alone = [replace(row, setting=replace(row.setting, threads=1)) for row in table.results]
    figure = pictures.throughput(replace(table, results=[*table.results, *alone]))
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes]
    assert len(set(titles)) == len(titles) == 8
    assert "1 and 2 threads" in figure.legends[0].get_title().get_text()


def test_tables_without_a_shape_in_common_have_no_summary():
    table = comparison()
    ratios = [replace(row, setting=replace(row.setting, tokens=Tokens(8, 77))) for row in table.ratios]
    assert pictures.summary(operators(), replace(table, ratios=ratios)) is None


def test_curves_without_a_loss():
    assert curves_figure([{"stage": "align", "step": 1, "train_runtime": 0.1}]).axes == []


def test_the_summary_shows_the_numbers_of_the_tables():
    with (RESULTS / "model_cpu_avx2.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["model"], row["peer"]) == ("inhibitor", "softmax_sdpa")]
    wanted = {(row["dtype"], f"{row['batch']}×{row['length']}"): float(row["throughput_ratio"]) for row in rows}
    figure = figure_of("summary")
    assert "AMD EPYC (avx2 fma), 2 threads" in figure.legends[0].get_title().get_text()
    for axes in figure.axes:
        (bars,) = (each for each in axes.containers if each.get_label() == "InhibiDistilBERT")
        places = [label.get_text() for label in axes.get_xticklabels()]
        assert places == ["1×128", "8×128", "1×512", "8×512"]
        heights = [1 + bar.get_height() for bar in bars]
        assert heights == pytest.approx([wanted[axes.get_title(), place] for place in places])


def test_a_figure_by_batch_is_of_the_length_that_has_several():
    """One text of 32 tokens, and one and eight of 128."""
    titles = [axes.get_title() for axes in pictures.throughput(ModelResults.read(RESULTS / "model_cpu_amx.json")).axes]
    assert titles[:2] == ["float32, threads: 1, texts of 128 tokens", "float32, threads: 1, batches of 1"]


def test_everything_is_drawn_again_from_the_tables(tmp_path: Path):
    for table in (*RESULTS.glob("*.json"), *RESULTS.glob("*.csv")):
        shutil.copy(table, tmp_path)
    renew(tmp_path)
    assert (tmp_path / INDEX).read_text() == (RESULTS / INDEX).read_text()
    drawn = {path.name: path for path in tmp_path.glob("*.png")}
    assert drawn.keys() == {path.name for path in RESULTS.glob("*.png")}
    assert drawn.keys() >= {"cpu_avx2.png", "model_cpu_avx2.png", "summary_avx2.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 100_000 for path in drawn.values())


def test_every_processor_has_its_summary_and_is_named_on_its_pictures(tmp_path: Path, monkeypatch):
    header = {"cpu": "another", "cpu flags": "avx512f amx_int8"}
    for table in (operators(), comparison()):
        name = "cpu" if isinstance(table, CpuResults) else "model_cpu"
        shutil.copy(RESULTS / f"{name}_avx2.json", tmp_path)
        replace(table, machine={**table.machine, **header}).write(tmp_path / f"{name}_amx.json")
    drawn = {}
    monkeypatch.setattr(
        plots, "save", lambda figure, path: drawn.update({path.name: figure.legends[0].get_title().get_text()})
    )
    pictures.redraw(tmp_path)
    assert drawn.keys() == {f"{name}_{kind}.png" for name in ("cpu", "model_cpu", "summary") for kind in ("avx2", "amx")}
    for name, note in drawn.items():
        assert note.startswith("another (avx512f amx_int8)" if "amx" in name else "AMD EPYC (avx2 fma)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"cpu\.json' cannot be read as JSON"),
        ("[]", r"cpu\.json' must hold a JSON object, got list"),
        ('{"results": []}', r"cpu\.json', machine: it must be an object of texts, got None"),
        ('{"machine": {}, "results": []}', r"cpu\.json', machine: it does not tell date, cpu or gpu"),
        (MACHINE % '[{"level": "operator"}]', r"cpu\.json', row 1 of results: column 'problem' must hold text, got no such"),
        (MACHINE % "[]", r"cpu\.json' does not hold what cpu\.png is drawn from"),
    ],
)
def test_a_table_that_is_not_one_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "cpu.json").write_text(text)
    with pytest.raises(UserError, match=message):
        pictures.redraw(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cpu.json"]
