"""`benchmark cpu` at toy sizes: that every rival runs, who is compared with whom, and what is said of who cannot."""

import csv
import json
import sys

import pytest
import torch

from inhibidistilbert import cli
from inhibidistilbert.benchmarks import cpu
from inhibidistilbert.benchmarks.cpu import BASELINE, Level, Problem, Refused, levels, run
from inhibidistilbert.benchmarks.timing import Budget

TOY = Problem("toy", 2, 16, heads=2, head_dim=16)


def refuse(problem):
    raise Refused("it does not want to")


def level(**rivals) -> Level:
    return Level("operator", [TOY], {BASELINE: lambda problem: int} | rivals, Budget(0, least=2))


def clocked(*seconds: float):
    left = list(seconds)
    return lambda function: left.pop(0)


def test_shapes_are_those_the_project_reports():
    operator, training, fallback, layer, model = levels()
    shapes = [(x.name, x.batch, x.heads, x.length, x.head_dim) for x in operator.problems]
    assert shapes == [
        ("A", 1, 12, 128, 64),
        ("B", 8, 12, 128, 64),
        ("C", 1, 12, 512, 64),
        ("D", 8, 12, 512, 64),
        ("E", 32, 12, 64, 32),
    ]
    assert training.problems == operator.problems
    assert list(fallback.problems) == list(operator.problems[:3])  # at D it takes seconds a call
    assert list(layer.problems) == list(model.problems) == list(operator.problems[:4])


def test_ratios_are_to_softmax_in_float32_and_to_the_peer():
    rivals = {"softmax bf16": lambda problem: int, "inhibitor bf16": lambda problem: int}
    measure = clocked(*(1.0, 4.0, 2.0), *(4.0, 8.0, 2.0))  # the second round runs backwards
    timings, refusals = run([level(**rivals)], [1], measure=measure)
    assert refusals == {}
    found = {timing.rival: (timing.ratio.median, timing.peer, timing.peer_ratio) for timing in timings}
    assert found[BASELINE] == (1.0, None, None)
    assert found["softmax bf16"] == (4.0, None, None)
    ratio, peer, peer_ratio = found["inhibitor bf16"]
    assert (ratio, peer, peer_ratio.median) == (2.0, "softmax bf16", 0.5)


def test_a_refusal_is_told_once_and_the_others_go_on():
    def bad(problem):
        def work():
            raise ValueError("not with these tensors")

        return work

    timings, refusals = run([level(**{"softmax int8": refuse, "inhibitor fp32": bad})], [1, 2])
    assert {timing.rival for timing in timings} == {BASELINE}
    assert [timing.threads for timing in timings] == [1, 2]
    assert refusals == {
        "softmax int8 (operator)": "it does not want to",
        "inhibitor fp32 (operator)": "not with these tensors",
    }


def test_a_peer_that_refuses_leaves_the_ratio_to_it_empty():
    timings, _ = run([level(**{"softmax int8": refuse, "inhibitor int8": lambda problem: int})], [1])
    row = next(timing.as_dict() for timing in timings if timing.rival == "inhibitor int8")
    assert (row["peer"], row["peer_ratio"]) == (None, None)
    assert row["ratio"] > 0


def test_threads_are_set_for_the_work_and_put_back():
    before, seen = torch.get_num_threads(), []
    run([level(spy=lambda problem: lambda: seen.append(torch.get_num_threads()))], [before + 1])
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_a_training_step_differentiates_query_key_and_value():
    gradients = cpu._training_step(torch.nn.functional.scaled_dot_product_attention)(TOY)()
    assert [gradient.shape for gradient in gradients] == [(2, 2, 16, 16)] * 3
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@torch.no_grad()
def test_int8_inhibitor_attention_is_not_the_float_one():
    works = [cpu._layer("inhibitor", "int8"), cpu._layer("inhibitor", "fp32")]
    try:
        quantized, exact = (work(TOY)() for work in works)
    except Refused as refusal:
        pytest.skip(str(refusal))
    encoder = cpu._encoder("inhibitor", "int8", 1, 32, 2)
    encoder.config.quantized = False
    only_linear = cpu._layer("inhibitor", "int8")(TOY)()
    cpu._encoder.cache_clear()
    assert not torch.equal(quantized, only_linear)
    assert (quantized - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("family", ["softmax", "inhibitor"])
def test_every_linear_layer_of_an_int8_encoder_is_int8(family):
    try:
        encoder = cpu._encoder(family, "int8", layers=1, dim=32, heads=2)
    except Refused as refusal:
        pytest.skip(str(refusal))
    linear = [module for name, module in encoder.named_modules() if name.endswith(("_lin", "lin1", "lin2"))]
    assert len(linear) == 6
    assert {type(module) for module in linear} == {torch.ao.nn.quantized.dynamic.Linear}


def test_rivals_get_the_same_data():
    first, second = cpu._heads(TOY, torch.float32), cpu._heads(TOY, torch.bfloat16)
    assert all(torch.equal(x.bfloat16(), y) for x, y in zip(first, second, strict=True))
    assert first[0].stride() == (16 * 2 * 16, 16, 2 * 16, 1)  # (batch, length, heads, head size) in memory


# The command.


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(arguments)`: exit code, stdout and stderr of `inhibidistilbert benchmark cpu`."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "benchmark", "cpu", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return command


def test_quick_run_writes_json_csv_and_figure(command, tmp_path):
    code, out, err = command("--quick", "--json", "--output", tmp_path)
    rows = json.loads(out)
    assert code == 0
    assert {row["level"] for row in rows} == {"operator", "training", "fallback", "layer", "model"}
    assert {row["threads"] for row in rows} == {1, 2}
    for name in ("operator", "layer", "model"):
        here = {row["rival"] for row in rows if row["level"] == name}
        assert {BASELINE, "softmax bf16"} <= here
    assert {"softmax int8"} <= {row["rival"] for row in rows if row["level"] == "model"}
    assert "note: softmax int8 (operator) is left out: torch has no int8 scaled dot product attention for CPUs\n" in err
    lines = [line for line in (tmp_path / "cpu.csv").read_text().splitlines() if not line.startswith("# ")]
    assert len(list(csv.DictReader(lines))) == len(rows)
    assert json.loads((tmp_path / "cpu.json").read_text())["machine"]["seed"] == "0"
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")


def test_table_of_one_level(command):
    code, out, _ = command("--quick", "--level", "training", "--threads", 1)
    assert code == 0
    (line,) = (line for line in out.splitlines() if BASELINE in line and "training" in line)
    assert line.split()[:5] == ["training", "1", "tiny", "2×2×16×16", "softmax"]
    assert "1.00 (1.00–1.00)" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--level", "head"], "--level must be one of operator, training, fallback, layer, model; got 'head'."),
        (["--threads", 0], "--threads must be at least 1; got 0."),
    ],
)
def test_bad_arguments(command, arguments, message):
    assert command(*arguments) == (2, "", f"error: {message}\n")
