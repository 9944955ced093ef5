"""The parts of the GPU run with everything but the GPU, which a device that counts stands in for."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from inhibidistilbert.benchmarks import energy, kernels_gpu
from inhibidistilbert.benchmarks.gpu import correctness, kernels, matrix_rate, models, training
from inhibidistilbert.benchmarks.gpu.execution import EAGER, MODES
from inhibidistilbert.benchmarks.gpu.findings import Deadline, Finding
from inhibidistilbert.benchmarks.gpu.matrix_source import THREADS, Instruction
from inhibidistilbert.benchmarks.gpu.models import FULL, PEER, SENTENCES, Place, texts
from inhibidistilbert.benchmarks.model import Protocol
from inhibidistilbert.benchmarks.operators import BASELINE, FORWARD, TRAINING, Operator
from inhibidistilbert.benchmarks.peers import INHIBITOR, Checkpoint
from inhibidistilbert.benchmarks.timing import Budget
from inhibidistilbert.support.benchmark_results import Shape
from inhibidistilbert.testing.reference import COMPILED_BACKENDS

CPU = torch.device("cpu")
# On clocks that stand still: a file may be run long after it was collected.
ENOUGH, NOTHING = (Deadline(seconds, clock=lambda: 0.0) for seconds in (600, 0))


def figures(found: Iterator[Finding] | list[Finding], metric: str) -> dict[str, float | None]:
    return {finding.case: finding.value for finding in found if finding.metric == metric}


def test_deadline() -> None:
    now = [10.0]
    deadline = Deadline(5, clock=lambda: now[0])
    assert (deadline.left, deadline.leaves(5), deadline.leaves(6)) == (5, True, False)
    now[0] = 17.0
    assert (deadline.left, deadline.leaves(1)) == (0, False)


# The checks


def test_a_check_that_holds_and_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("wrong by far\nand more\nand much more")

    monkeypatch.setattr(correctness, "_checks", lambda: {"good": lambda: None, "bad": fail})
    assert (correctness.check("good").value, correctness.check("good").failed) == (1, False)
    bad = correctness.check("bad")
    assert (bad.value, bad.failed, bad.note) == (None, True, "AssertionError: wrong by far and more")


@pytest.mark.slow
@pytest.mark.skipif("triton" not in COMPILED_BACKENDS, reason="Triton cannot run here")
def test_checks_run_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "_MOST_PROCESSES", 1)
    single = "single key, 1 queries"
    good, unknown = sorted(correctness.measure(ENOUGH, [single, "no such check"]), key=lambda finding: finding.failed)
    assert (good.case, good.value) == (single, 1)
    assert unknown.note == "KeyError: 'no such check'"


def test_checks_without_time_are_skipped_by_name() -> None:
    found = list(correctness.measure(NOTHING, ["a", "b"]))
    assert [(finding.case, finding.failed) for finding in found] == [("a", False), ("b", False)]
    assert all(finding.note.startswith("skipped: the 0 s") for finding in found)


# The kernels


class FakeDevice:
    torch_device = CPU
    name = "a device"
    instruction_rate = 1e6

    def measure(self, function: Callable[[], object]) -> float:
        function()
        return 0.5

    def peak_memory(self, function: Callable[[], object]) -> int:
        return 1024


def softmax(query, key, value):
    return nn.functional.scaled_dot_product_attention(query, key, value)


def test_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SHAPES", (Shape(1, 1, 4, 16), Shape(1, 1, 8, 16)))
    floors = {FORWARD: 4.0, TRAINING: 17.0}

    def hungry(query, key, value):
        if query.shape[2] == 8:
            raise torch.OutOfMemoryError
        return softmax(query, key, value)

    peers = {
        BASELINE: Operator(softmax),
        kernels.INHIBITOR: Operator(softmax, floor=floors),
        kernels.COMPOSED: Operator(hungry),
    }
    found = list(kernels.measure(ENOUGH, FakeDevice(), peers))
    at_first = [finding for finding in found if finding.setting == "1×1×4×16, forward"]
    assert figures(at_first, "time") == {BASELINE: 500.0, kernels.INHIBITOR: 500.0, kernels.COMPOSED: 500.0}
    assert figures(at_first, "times faster than cdist") == {kernels.INHIBITOR: 1.0}
    assert figures(at_first, "share of the floor")[kernels.INHIBITOR] == pytest.approx(4 * 4 * 4 * 16 / 1e6 / 0.5)
    (missing,) = (finding for finding in found if finding.note and finding.setting == "1×1×8×16, forward")
    assert (missing.case, missing.note) == (kernels.COMPOSED, "skipped: out of memory")


def test_kernels_without_time() -> None:
    found = list(kernels.measure(NOTHING, FakeDevice(), {BASELINE: Operator(softmax)}))
    assert [finding.setting for finding in found] == [str(shape) for shape in kernels.SHAPES]


def test_the_peers_are_those_of_the_benchmark() -> None:
    assert {kernels.INHIBITOR, kernels.COMPOSED, kernels._COMPILED, BASELINE} <= set(kernels_gpu.peers())


# One-bit matrix instructions

INSTRUCTIONS = [Instruction(name, bits) for name in ("mma", "wgmma") for bits in (1, 16)]
OPCODES = {
    ("mma", 1): "BMMA.168256.AND.POPC",
    ("mma", 16): "HMMA.16816.F32.BF16",
    ("wgmma", 1): "BGMMA.64x256x256.AND.POPC",
    ("wgmma", 16): "HGMMA.64x256x16.F32.BF16",
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=str)
def test_the_source_compiles_to_the_instruction_alone(instruction: Instruction, tmp_path: Path) -> None:
    source, code = tmp_path / "rate.cu", tmp_path / "rate.cubin"
    source.write_text(instruction.source())
    compiler = ["nvcc", "-cubin", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas", "-v", "-o", code, source]
    done = subprocess.run(compiler, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert " 0 bytes spill stores" in done.stderr
    assert "serialized" not in done.stderr, "the instructions wait for each other"
    tool = Path(pytest.importorskip("triton").__file__).parent / "backends/nvidia/bin/nvdisasm"
    listing = subprocess.run([tool, "-c", code], capture_output=True, text=True, check=True).stdout
    opcodes = Counter(re.findall(r"\b\w*MMA[\w.]*", listing))
    assert set(opcodes) == {OPCODES[instruction.name, instruction.bits]}


def test_both_instructions_read_the_same_bytes_and_differ_in_operations() -> None:
    for name in ("mma", "wgmma"):
        bits, half = Instruction(name, 1), Instruction(name, 16)
        assert bits.operand_words == half.operand_words
        assert bits.operations == 16 * half.operations
        assert bits.instructions(3, 5) == half.instructions(3, 5)
    assert Instruction("mma", 16).operations == 2 * 16 * 8 * 16
    assert Instruction("wgmma", 1).operations == 2 * 64 * 256 * 256


class FakeMatrixUnits:
    """A GPU whose one-bit instructions take `slower` times as long as the others, and that adds up right or wrong."""

    torch_device, processors = CPU, 2

    def __init__(self, capability: tuple[int, int] = (9, 0), slower: float = 4.0, wrong: int = 0):
        self.capability, self.slower, self.wrong = capability, slower, wrong
        self.seconds = 0.0

    def compile(self, instruction: Instruction, blocks: int) -> matrix_rate.Kernel:
        def kernel(operands: torch.Tensor, sums: torch.Tensor, rounds: int) -> None:
            assert operands.numel() == instruction.operand_words
            assert sums.numel() == blocks * THREADS
            sums.fill_(instruction.total(rounds) + self.wrong)
            self.seconds = rounds * 1e-4 * (self.slower if instruction.bits == 1 else 1)

        return kernel

    def measure(self, work: Callable[[], object]) -> float:
        work()
        return self.seconds


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_rate, "_BUDGET", Budget(0, least=2))


def test_rates_and_their_ratio(few_rounds) -> None:
    found = list(matrix_rate.measure(ENOUGH, FakeMatrixUnits(slower=4.0)))
    assert not any(finding.failed for finding in found)
    assert figures(found, matrix_rate.RELATIVE) == {"mma": 0.25, "wgmma": 0.25}
    rates = figures(found, "rate")
    # Two blocks of two warpgroups, 8 instructions a round of a tenth of a millisecond.
    assert rates["wgmma, bfloat16"] == pytest.approx(2 * 2 * 8 * 2 * 64 * 256 * 16 / 1e-4 / 1e12)
    assert rates["wgmma, one-bit"] == pytest.approx(4 * rates["wgmma, bfloat16"])


def test_wrong_sums_are_no_rate(few_rounds) -> None:
    found = list(matrix_rate.measure(ENOUGH, FakeMatrixUnits(wrong=1)))
    assert [finding.failed for finding in found] == [True, True]
    assert "sums are wrong: 10241 instead of 10240" in found[0].note


def test_instructions_a_gpu_does_not_have(few_rounds) -> None:
    found = list(matrix_rate.measure(ENOUGH, FakeMatrixUnits((8, 6))))
    assert found[-1] == Finding.skipped("wgmma", "", "sm_90a only, here is sm_86")
    assert set(figures(found, matrix_rate.RELATIVE)) == {"mma"}
    found = list(matrix_rate.measure(ENOUGH, FakeMatrixUnits((7, 5))))
    assert [finding.note for finding in found] == ["skipped: from sm_80", "skipped: sm_90a only, here is sm_75"]


# Models

TINY = replace(Checkpoint.load("tiny"), source="tiny")
TINY.config.n_layers, TINY.config.vocab_size = 1, 100


@pytest.fixture
def pretend_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    def joules(work: Callable[[], object]) -> float:
        work()
        return 2.0

    monkeypatch.setattr(energy, "find_meter", lambda device: SimpleNamespace(source="a meter", joules=joules))
    monkeypatch.setattr("inhibidistilbert.benchmarks.model.METERED_SECONDS", 0)


@pytest.fixture
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "SENTENCE_LENGTHS", (5, 9))
    monkeypatch.setattr(models, "LENGTH", 12)


def test_models_in_two_modes_of_which_one_fails(pretend_meter, few_texts, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: nn.Module) -> nn.Module:
        raise RuntimeError("no graphs here")

    monkeypatch.setitem(MODES, "CUDA graph", (EAGER, fail))
    places = [Place("float32", SENTENCES, batch, (EAGER, "CUDA graph")) for batch in (1, 2)]
    protocol = Protocol(samples=1, repetitions=2, seconds=0)
    found = list(models.measure(ENOUGH, CPU, TINY, places, protocol))
    assert found[0].note == "a meter"
    for place in places:
        here = [finding for finding in found if finding.setting == str(place)]
        names = {f"{name}, {EAGER}" for name in (INHIBITOR, PEER)}
        assert set(figures(here, "throughput")) == set(figures(here, "latency")) == names
        assert figures(here, "energy") == dict.fromkeys(names, 2 / place.batch)
        speeds = figures(here, "throughput")
        assert all(speeds.values())
        assert figures(here, "throughput ratio").keys() == figures(here, "energy ratio").keys() == {EAGER}
        assert figures(here, "energy ratio")[EAGER] == 1
    first, second = (finding for finding in found if finding.case == "CUDA graph")
    assert (first.failed, first.note) == (True, "RuntimeError: no graphs here")
    assert (second.failed, second.note) == (False, "skipped: it failed before")


class Doubled(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        return SimpleNamespace(last_hidden_state=2 * self.model(**inputs).last_hidden_state)


def test_a_mode_with_another_result_is_no_figure(pretend_meter, few_texts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODES, "CUDA graph", (EAGER, Doubled))
    protocol = Protocol(samples=1, repetitions=1, seconds=0)
    found = list(models.measure(ENOUGH, CPU, TINY, [Place("float32", FULL, 1, (EAGER, "CUDA graph"))], protocol))
    assert found[-1].note == "RuntimeError: inhibitor gives another result than in eager mode: relative difference 1"


def test_models_without_time(pretend_meter) -> None:
    found = list(models.measure(NOTHING, CPU, TINY))
    assert len(found) == 1 + sum(len(place.modes) for place in models.PLACES)
    assert all(finding.note.startswith("skipped") for finding in found[1:])


def test_texts_are_sentences_or_full() -> None:
    (batch, *_) = texts(Place("float32", FULL, 3), 100, CPU)
    assert batch["input_ids"].shape == (3, models.LENGTH)
    assert "attention_mask" not in batch
    alone = texts(Place("float32", SENTENCES, 1), 100, CPU)
    assert sorted(len(batch["input_ids"][0]) for batch in alone) == list(models.SENTENCE_LENGTHS)
    many = texts(Place("float32", SENTENCES, 8), 100, CPU)
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in many if "attention_mask" in batch]).tolist()
    assert set(lengths) <= set(models.SENTENCE_LENGTHS)
    for batch in many:
        assert batch["input_ids"].shape[1] % 8 == 0
        assert (batch["input_ids"].ne(0) == batch["attention_mask"].bool()).all()
    again = texts(Place("float32", SENTENCES, 8), 100, CPU)
    assert all(torch.equal(one["input_ids"], other["input_ids"]) for one, other in zip(many, again, strict=True))


# Training


def test_training_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_BUDGET", Budget(0, least=2))
    monkeypatch.setattr(training, "PRECISIONS", ("bfloat16",))
    found = list(training.measure(ENOUGH, CPU, TINY, lengths=[16], tokens=32))
    assert {finding.setting for finding in found} == {"bfloat16, 2×16 tokens"}
    assert not any(finding.failed for finding in found)
    assert figures(found, "training step").keys() == figures(found, "peak memory").keys() == {INHIBITOR, PEER}
    assert figures(found, f"step / {PEER}").keys() == {INHIBITOR}


def test_training_without_memory_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(model: nn.Module, *_) -> Callable[[], None]:
        if type(model).__name__.startswith("Inhibi"):
            raise torch.OutOfMemoryError
        return lambda: None

    monkeypatch.setattr(training, "_step", step)
    monkeypatch.setattr(training, "_BUDGET", Budget(0, least=2))
    monkeypatch.setattr(training, "PRECISIONS", ("float32",))
    found = list(training.measure(ENOUGH, CPU, TINY, lengths=[16], tokens=16))
    assert found[0] == Finding.skipped(INHIBITOR, "float32, 1×16 tokens", "out of memory")
    assert figures(found, "training step").keys() == {PEER}


def test_training_without_time() -> None:
    found = list(training.measure(NOTHING, CPU, TINY))
    assert [finding.failed for finding in found] == [False] * len(training.LENGTHS) * len(training.PRECISIONS)


# The meter


class FakeNvml:
    def __init__(self, *millijoules: int):
        self.millijoules = list(millijoules)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:
        return self.millijoules.pop(0)


def test_energy_by_nvidias_counter() -> None:
    calls = []
    meter = energy.NvmlMeter(FakeNvml(1_000, 3_500), object(), "a GPU")
    assert meter.joules(lambda: calls.append(1)) == 2.5
    assert calls == [1]
    assert meter.source == "NVML, a GPU"


def test_no_package_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    with pytest.raises(energy.NoMeter, match="neither zeus nor nvidia-ml-py is installed"):
        energy.find_meter(torch.device("cuda", 0))
