"""`benchmark cpu` at toy sizes: that every peer runs, who is compared with whom, and what is said of who cannot."""

import csv
import json
import os
import sys

import pytest
import torch

from inhibidistilbert import cli
from inhibidistilbert.benchmarks import cpu
from inhibidistilbert.benchmarks.cpu import Level, levels, run
from inhibidistilbert.benchmarks.operators import BASELINE, TRAINING, Operator
from inhibidistilbert.benchmarks.timing import Budget, Refused
from inhibidistilbert.support import machine
from inhibidistilbert.support.benchmark_results import Shape

TOY = Shape(2, 2, 16, 16)


def refuse(shape):
    raise Refused("it does not want to")


def level(**peers) -> Level:
    return Level("operator", {"toy": TOY}, {BASELINE: lambda shape: int} | peers, Budget(0, least=2))


def clocked(*seconds: float):
    left = list(seconds)
    return lambda function: left.pop(0)


def test_shapes_are_those_the_project_reports():
    operator, training, fallback, layer, model = levels()
    shapes = [(name, x.batch, x.heads, x.length, x.head_dim) for name, x in operator.shapes.items()]
    assert shapes == [
        ("A", 1, 12, 128, 64),
        ("B", 8, 12, 128, 64),
        ("C", 1, 12, 512, 64),
        ("D", 8, 12, 512, 64),
        ("E", 32, 12, 64, 32),
    ]
    assert training.shapes == operator.shapes
    assert fallback.shapes == {name: operator.shapes[name] for name in "ABC"}  # at D it takes seconds a call
    assert layer.shapes == model.shapes == {name: operator.shapes[name] for name in "ABCD"}


def test_ratios_are_to_softmax_in_float32_and_to_the_peer():
    peers = {"softmax bf16": lambda shape: int, "inhibitor bf16": lambda shape: int}
    measure = clocked(*(1.0, 4.0, 2.0), *(4.0, 8.0, 2.0))  # the second round runs backwards
    rows, refusals = run([level(**peers)], [1], measure=measure)
    assert refusals == {}
    found = {row.peer: (row.ratio.median, row.softmax, row.softmax_ratio) for row in rows}
    assert found[BASELINE] == (1.0, None, None)
    assert found["softmax bf16"] == (4.0, None, None)
    ratio, softmax, softmax_ratio = found["inhibitor bf16"]
    assert (ratio, softmax, softmax_ratio.median) == (2.0, "softmax bf16", 0.5)


def test_a_refusal_is_told_once_and_the_others_go_on():
    def bad(shape):
        def work():
            raise ValueError("not with these tensors")

        return work

    rows, refusals = run([level(**{"softmax int8": refuse, "inhibitor fp32": bad})], [1, 2])
    assert {row.peer for row in rows} == {BASELINE}
    assert [row.threads for row in rows] == [1, 2]
    assert refusals == {
        "softmax int8 (operator)": "it does not want to",
        "inhibitor fp32 (operator)": "not with these tensors",
    }


def test_a_softmax_that_refuses_leaves_the_ratio_to_it_empty():
    rows, _ = run([level(**{"softmax int8": refuse, "inhibitor int8": lambda shape: int})], [1])
    row = next(row.as_dict() for row in rows if row.peer == "inhibitor int8")
    assert (row["peer"], row["peer_ratio"]) == (None, None)
    assert row["ratio"] > 0


def test_threads_are_set_for_the_work_and_put_back():
    before, seen = torch.get_num_threads(), []
    run([level(spy=lambda shape: lambda: seen.append(torch.get_num_threads()))], [before + 1])
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_a_training_step_differentiates_query_key_and_value():
    gradients = Operator(torch.nn.functional.scaled_dot_product_attention).work(TOY, TRAINING)()
    assert [gradient.shape for gradient in gradients] == [(2, 2, 16, 16)] * 3
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@torch.no_grad()
def test_int8_inhibitor_attention_is_not_the_float_one():
    quantized, exact = (cpu._layer("inhibitor", precision, TOY)() for precision in ("int8", "fp32"))
    encoder = cpu._encoder("inhibitor", "int8", 1, 32, 2)
    encoder.config.quantized = False
    only_linear = cpu._layer("inhibitor", "int8", TOY)()
    cpu._encoder.cache_clear()
    assert not torch.equal(quantized, only_linear)
    assert (quantized - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("family", ["softmax", "inhibitor"])
def test_every_linear_layer_of_an_int8_encoder_is_int8(family):
    encoder = cpu._encoder(family, "int8", layers=1, dim=32, heads=2)
    linear = [module for name, module in encoder.named_modules() if name.endswith(("_lin", "lin1", "lin2"))]
    assert len(linear) == 6
    assert {type(module) for module in linear} == {torch.ao.nn.quantized.dynamic.Linear}


def test_peers_get_the_same_data():
    first, second = (Operator(lambda *x: x, dtype).work(TOY)() for dtype in (torch.float32, torch.bfloat16))
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
    table = tmp_path / f"cpu_{machine.cpu_kind()}.json"
    lines = [line for line in table.with_suffix(".csv").read_text().splitlines() if not line.startswith("# ")]
    assert len(list(csv.DictReader(lines))) == len(rows)
    assert json.loads(table.read_text())["machine"]["seed"] == "0"
    assert (table.with_suffix(".png")).read_bytes().startswith(b"\x89PNG")


def test_the_table_of_another_processor_is_not_overwritten(command, tmp_path, monkeypatch):
    table = tmp_path / f"cpu_{machine.cpu_kind()}.json"
    monkeypatch.setattr(cpu, "run", lambda *arguments: pytest.fail("measured before it was refused"))
    table.write_text('{"machine": {"cpu": "another"}, "results": []}')
    code, _, err = command("--quick", "--output", tmp_path)
    assert code == 2
    assert f"holds {table.name} of another processor, 'another', and this is " in err
    assert [path.name for path in tmp_path.iterdir()] == [table.name]


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
        (
            ["--threads", 1_000_000],
            f"--threads must be at most {os.cpu_count()} on this machine; got 1000000.",
        ),
    ],
)
def test_bad_arguments(command, arguments, message):
    assert command(*arguments) == (2, "", f"error: {message}\n")
