"""The GPU run as a whole: parts that break, what they have found by then, verdicts, files, tables and exit codes."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from inhibidistilbert import cli
from inhibidistilbert.benchmarks import pictures
from inhibidistilbert.benchmarks.gpu import goals, kernels, matrix_rate, models
from inhibidistilbert.benchmarks.gpu import run as gpu_run
from inhibidistilbert.benchmarks.gpu.findings import Finding
from inhibidistilbert.benchmarks.gpu.models import FULL, PEER, SENTENCES, Place
from inhibidistilbert.benchmarks.gpu.run import PARTS, TOTAL_SECONDS, Outcome, Part, run, run_part
from inhibidistilbert.benchmarks.index import read_entry
from inhibidistilbert.benchmarks.operators import FORWARD
from inhibidistilbert.benchmarks.peers import INHIBITOR
from inhibidistilbert.support.benchmark_results import Shape

BREAKS = """
from inhibidistilbert.benchmarks.gpu.findings import Finding
def measure(deadline):
    yield Finding("first", "here", "time", deadline.seconds, "s")
    print("said on the way")
    raise RuntimeError("an illegal memory access was encountered")
"""


def test_what_a_part_found_before_it_broke_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "breaks.py").write_text(BREAKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = run_part(Part("breaking", "breaks", 500), 500, 550)
    assert outcome.findings == [Finding("first", "here", "time", 500.0, "s")]
    assert outcome.failed
    assert outcome.trouble == "ended with exit code 1: RuntimeError: an illegal memory access was encountered"
    assert "said on the way" in capfd.readouterr().err


def test_a_part_that_hangs_is_ended() -> None:
    outcome = run_part(Part("endless", "nothing", 500), 500, limit=0.1)
    assert outcome.trouble == "ended after 0 s"


def test_parts_share_the_time_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def run_part(part: Part, seconds: float, limit: float) -> Outcome:
        given.append((part.name, seconds, limit))
        return Outcome(part, [], seconds)

    monkeypatch.setattr(gpu_run, "run_part", run_part)
    outcomes = list(run([Part("one", "", 30), Part("two", "", 80)], total=50))
    assert [(name, round(seconds), round(limit)) for name, seconds, limit in given] == [("one", 30, 50), ("two", 50, 60)]
    assert not any(outcome.failed for outcome in outcomes)
    (late,) = run([Part("late", "", 30)], total=0.5)
    assert late.summary == "not begun: the 0 s of the run are used up"


def test_the_parts_fit_into_eight_minutes() -> None:
    start_of_a_process = 8
    assert sum(part.seconds + start_of_a_process for part in PARTS) <= TOTAL_SECONDS
    assert TOTAL_SECONDS + gpu_run.GRACE_SECONDS / 2 < 480


# What comes of it


def model_findings(throughput: dict[int, float], energy: float) -> list[Finding]:
    """Findings on sentences: softmax is fastest as a graph, 100 texts a second, the inhibitor at 100 times what is given."""
    found = []
    for batch, ratio in throughput.items():
        place = str(Place("bfloat16", SENTENCES, batch))
        for name, mode, speed, joules in (
            (PEER, "eager", 10, 9.0),
            (PEER, "CUDA graph", 100, 2.0),
            (INHIBITOR, "eager", 100 * ratio, 2 * energy),
            (INHIBITOR, "CUDA graph", 1, 9.0),
        ):
            found.append(Finding(f"{name}, {mode}", place, "throughput", speed, "texts/s"))
            found.append(Finding(f"{name}, {mode}", place, "energy", joules, "J/text"))
    return found


def kernel_findings() -> list[Finding]:
    first = kernels.SHAPES[0]
    twice = Shape(first.batch, first.heads, 2 * first.length, first.head_dim)
    where = kernels.setting(first, FORWARD)
    return [
        Finding(kernels.INHIBITOR, where, "share of the floor", 0.8),
        Finding(kernels.INHIBITOR, where, "times faster than cdist", 25.0),
        Finding(kernels.INHIBITOR, where, "extra memory", 1000, "B"),
        Finding(kernels.INHIBITOR, where, "time", 4.0, "ms"),
        Finding(kernels.INHIBITOR, kernels.setting(twice, FORWARD), "extra memory", 2000, "B"),
    ]


def outcome(name: str, *findings: Finding, trouble: str = "") -> Outcome:
    (part,) = (part for part in PARTS if part.name == name)
    return Outcome(part, findings, 12.34, trouble)


OUTCOMES = [
    outcome("correctness", Finding("a", value=1), Finding("b", note="AssertionError: wrong", failed=True)),
    outcome("kernels", *kernel_findings()),
    outcome("one-bit", Finding("mma", "", matrix_rate.RELATIVE, 0.25), Finding.skipped("wgmma", "", "sm_90a only")),
    outcome("models", *model_findings({1: 1.2, 8: 0.97, 16: 0.96, 32: 0.96}, energy=1.2)),
    outcome("training", trouble="ended after 65 s"),
]


def test_verdicts() -> None:
    verdicts = {row.goal: (row.value, row.met) for row in goals.results({}, OUTCOMES).goals}
    assert list(verdicts.values()) == [
        (1, False),  # checks
        (0.8, True),
        (25, False),
        (2, True),
        (pytest.approx(0.96), True),  # the worst batch, each in its fastest mode
        (pytest.approx(1.2), False),
        (None, None),  # full texts were not measured
        (None, None),
        (0.25, None),  # no bound
        (None, None),
    ]


def test_a_batch_without_a_figure_is_no_verdict_on_the_worst() -> None:
    row = goals.GOALS[4].judge({"models": model_findings({1: 1.2, 8: 0.97, 16: 0.96}, energy=1.0)})
    assert (row.value, row.met) == (None, None)


def test_nothing_measured_meets_no_goal() -> None:
    assert {row.met for row in goals.results({}, []).goals} == {None}


@pytest.mark.parametrize(
    ("device", "stem"), [("NVIDIA H200", "gpu_nvidia_h200"), ("NVIDIA H100 80GB HBM3", "gpu_nvidia_h100_80gb_hbm3")]
)
def test_file_names(device: str, stem: str) -> None:
    assert goals.file_stem(device) == stem


def test_the_picture_shows_what_there_is() -> None:
    header = {"gpu": "Some GPU"}
    figure = pictures.gpu(goals.results(header, OUTCOMES))
    kernel, model = figure.axes
    assert [axes.get_title() for axes in (kernel, model)] == [
        f"attention alone, {FORWARD}",
        "whole model, bfloat16, sentences",
    ]
    drawn = {each.get_label(): list(each.lines[0].get_ydata()) for axes in figure.axes for each in axes.containers}
    assert drawn["inhibitor, float32"] == [4.0]
    assert drawn["DistilBERT, SDPA, CUDA graph"] == [100, 100, 100, 100]
    assert pictures.gpu(goals.results(header, [])) is None


# The command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """`command(outcomes, arguments)`: exit code, stdout and stderr on a GPU that is only pretended."""

    def command(outcomes: Iterable[Outcome], *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
        monkeypatch.setattr(gpu_run, "run", lambda chosen: (x for x in outcomes if x.part in chosen))
        monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "benchmark", "gpu", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return command


def test_tables_files_and_the_exit_code_of_a_run_with_failures(command, tmp_path: Path) -> None:
    code, out, _ = command(OUTCOMES, "--output", tmp_path)
    assert code == 1
    assert {path.name for path in tmp_path.iterdir()} == {f"gpu_some_gpu.{end}" for end in ("csv", "json", "png")}
    saved = json.loads((tmp_path / "gpu_some_gpu.json").read_text())
    assert saved["machine"]["gpu"] == "Some GPU"
    assert read_entry(tmp_path / "gpu_some_gpu.csv").machine == "Some GPU", "the index of the results would refuse it"
    assert [part["state"] for part in saved["parts"]] == ["failed", "done", "done", "done", "failed"]
    assert [goal["met"] for goal in saved["goals"]][:3] == [False, True, False]
    assert len(saved["results"]) == len(OUTCOMES) + sum(len(each.findings) for each in OUTCOMES)
    lines = [line.split() for line in out.splitlines()]
    assert ["training", "failed", "12", "ended", "after", "65", "s"] in lines
    assert any(line[-3:] == ["0.75", "0.80", "yes"] for line in lines)
    assert "1 failed, first b : AssertionError: wrong" in " ".join(out.split())


def test_files_of_a_run_that_is_cut_off(command, tmp_path: Path) -> None:
    def cut_off():
        yield OUTCOMES[0]
        raise KeyboardInterrupt

    assert command(cut_off(), "--output", tmp_path)[0] != 0
    assert "AssertionError: wrong" in (tmp_path / "gpu_some_gpu.csv").read_text()


def test_a_run_without_failures(command, tmp_path: Path) -> None:
    code, out, _ = command(OUTCOMES, "--part", "kernels", "--part", "one-bit", "--json")
    assert code == 0
    assert {row["part"] for row in json.loads(out)} == {"kernels", "one-bit"}


def test_files_of_a_run_in_which_nothing_worked(command, tmp_path: Path) -> None:
    code, _, _ = command([outcome("training", trouble="broke")], "--output", tmp_path)
    assert code == 1
    assert {path.name for path in tmp_path.iterdir()} == {"gpu_some_gpu.csv", "gpu_some_gpu.json"}
    assert "broke" in (tmp_path / "gpu_some_gpu.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "all"], "--part must be one of correctness, kernels, one-bit, models, training; got 'all'."),
        ([], "benchmark gpu needs a GPU that torch can use; without one, benchmark kernels --static counts."),
    ],
)
def test_errors_before_anything_runs(arguments, message, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "benchmark", "gpu", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_every_part_is_a_module_with_a_measure() -> None:
    for part in PARTS:
        assert callable(__import__(part.module, fromlist=["measure"]).measure)
    assert models.PLACES[0].batch == 1
    assert FULL in {place.texts for place in models.PLACES}
