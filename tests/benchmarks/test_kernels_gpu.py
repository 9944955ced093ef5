"""Timing on a GPU: everything but the GPU, which a device that counts calls stands in for."""

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from inhibidistilbert import cli, inhibitor_attention
from inhibidistilbert.benchmarks import kernels_gpu
from inhibidistilbert.benchmarks.kernels_gpu import run
from inhibidistilbert.benchmarks.operators import BASELINE, FORWARD, TRAINING, Operator, composed_attention
from inhibidistilbert.benchmarks.timing import Budget
from inhibidistilbert.kernels.triton.launch import triton_refusal
from inhibidistilbert.support.benchmark_results import Shape
from inhibidistilbert.support.results import Quantiles

SHAPE = Shape(batch=1, heads=2, length=4, head_dim=16)
TWICE = Budget(0, least=2)


class FakeDevice:
    """The CPU, on which a call takes the seconds that are given and allocates a mebibyte."""

    torch_device = torch.device("cpu")
    name = "a device"
    instruction_rate = 1e6

    def __init__(self, *seconds: float):
        self.seconds = list(seconds)

    def measure(self, function: Callable[[], object]) -> float:
        function()
        return self.seconds.pop(0) if self.seconds else 1.0

    def peak_memory(self, function: Callable[[], object]) -> int:
        function()
        return 2**20


def softmax(query, key, value):
    return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def test_composed_attention_is_the_operator():
    query, key, value = torch.randn(3, 2, 3, 9, 16, dtype=torch.float64)
    expected = inhibitor_attention(query, key, value, backend="naive")
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(composed_attention(query, key, value), expected)


def test_every_peer_but_the_compiled_ones_runs_forward_and_backward():
    chosen = {name: peer for name, peer in kernels_gpu.peers().items() if "torch.compile" not in name}
    if triton_refusal(torch.zeros(1, 1, 1, 1)) is not None:
        chosen = {name: peer for name, peer in chosen.items() if peer.floor is None}
    rows = run(FakeDevice(), [SHAPE], chosen, budget=Budget(0, least=1))
    measured = {(row.peer, row.pass_name) for row in rows if row.milliseconds}
    expected = {(name, FORWARD) for name in chosen} | {(name, TRAINING) for name in chosen if chosen[name].differentiable}
    assert measured == expected
    assert ("distances fp32, torch.cdist", TRAINING) not in measured


def test_times_ratios_and_share_of_the_floor():
    floors = {FORWARD: 4.0, TRAINING: 17.0}
    chosen = {BASELINE: Operator(softmax), "inhibitor": Operator(softmax, floor=floors)}
    # Round 1: softmax 1 s, inhibitor 2 s; round 2 the other way about: inhibitor 4 s, softmax 2 s.
    forward, ours, *_ = run(FakeDevice(1.0, 2.0, 4.0, 2.0), [SHAPE], chosen, budget=TWICE)
    assert forward.milliseconds == Quantiles.of([1000.0, 2000.0])
    assert forward.share_of_floor is None
    assert ours.milliseconds is not None
    assert ours.milliseconds.median == 3000.0
    assert ours.ratio == Quantiles(2.0, 2.0, 2.0)
    assert ours.share_of_floor == pytest.approx(4 * (1 * 2 * 4 * 4 * 16) / 1e6 / 3.0)
    assert ours.peak_bytes == 2**20


def test_inputs_take_turns():
    seen = set()

    def attend(query, key, value):
        seen.add(query.data_ptr())
        return softmax(query, key, value)

    run(FakeDevice(), [SHAPE], {BASELINE: Operator(attend, differentiable=False)}, budget=Budget(0, least=5))
    assert len(seen) == 4


@pytest.mark.parametrize("hungry", [BASELINE, "inhibitor"])
def test_a_peer_too_large_for_the_memory_is_noted(hungry):
    def fail(query, key, value):
        raise torch.OutOfMemoryError

    chosen = {name: Operator(fail if name == hungry else softmax) for name in (BASELINE, "inhibitor")}
    rows = run(FakeDevice(), [SHAPE], chosen, budget=TWICE)
    notes = {row.peer: row.as_dict()["note"] for row in rows if row.pass_name == FORWARD}
    assert notes == {name: "out of memory" if name == hungry else "" for name in chosen}
    other = next(row for row in rows if row.peer != hungry)
    assert (other.ratio is None) == (hungry == BASELINE)


def test_other_errors_are_not_swallowed():
    def fail(query, key, value):
        raise RuntimeError("wrong")

    with pytest.raises(RuntimeError, match="wrong"):
        run(FakeDevice(), [SHAPE], {BASELINE: Operator(fail)}, budget=TWICE)


@pytest.mark.parametrize(
    ("capability", "hip", "lanes"), [((8, 0), None, 64), ((8, 6), None, 128), ((9, 0), None, 128), ((8, 0), "6.4", 128)]
)
def test_fp32_lanes_of_a_processor(monkeypatch, capability, hip, lanes):
    monkeypatch.setattr(torch.version, "hip", hip)
    assert kernels_gpu._fp32_lanes(SimpleNamespace(major=capability[0], minor=capability[1])) == lanes


# The command.


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(arguments)`: exit code, stdout and stderr of `inhibidistilbert benchmark kernels`."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "benchmark", "kernels", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return command


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_error_names_static(command):
    message = "error: benchmark kernels needs a GPU that torch can use; without one, --static counts instructions.\n"
    assert command() == (2, "", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", 0], "--batch must be at least 1; got 0."),
        (["--length", 64, "--length", -1], "--length must be at least 1; got -1."),
        (["--head-dim", 200], "--head-dim must be from 1 to 128; got 200."),
    ],
)
def test_bad_arguments(command, arguments, message):
    assert command(*arguments) == (2, "", f"error: {message}\n")


@pytest.fixture
def pretend(monkeypatch):
    chosen = {BASELINE: Operator(softmax), "inhibitor": Operator(softmax, floor={FORWARD: 4.0, TRAINING: 17.0})}
    monkeypatch.setattr(kernels_gpu, "find_gpu", lambda: FakeDevice())
    monkeypatch.setattr(kernels_gpu, "peers", lambda: chosen)


def test_files_and_json(command, pretend, tmp_path):
    code, out, _ = command("--length", 4, "--length", 8, "--heads", 2, "--output", tmp_path, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [(row["length"], row["pass"], row["rival"]) for row in rows] == [
        (length, pass_name, peer)
        for length in (4, 8)
        for pass_name in (FORWARD, TRAINING)
        for peer in (BASELINE, "inhibitor")
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"kernels_gpu.csv", "kernels_gpu.json", "kernels_gpu.png"}
    assert json.loads((tmp_path / "kernels_gpu.json").read_text())["machine"]["gpu"] == "a device"


def test_table_for_people(command, pretend):
    code, out, _ = command("--length", 4)
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.strip().startswith("forward   ") and "inhibitor" in line)
    assert line.split() == ["forward", "8×12×4×64", "inhibitor", "1000.000", "1.00", "39%", "1"]
