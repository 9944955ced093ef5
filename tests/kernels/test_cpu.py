"""The compiled CPU form: every vector width, any layout, threads, extremes, memory, torch.compile, and what it refuses.

The values common to all backends are tested in test_values.py and its neighbours.
"""

import importlib
import logging
import math
import os
import pkgutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from inhibidistilbert import inhibitor_attention
from inhibidistilbert.kernels import notice
from inhibidistilbert.kernels.cpu import attention as cpu
from inhibidistilbert.kernels.cpu.code.encoder import encoder_ir
from inhibidistilbert.kernels.cpu.code.fields import workspace_layout
from inhibidistilbert.kernels.forms import Form
from inhibidistilbert.kernels.llvm import jit
from inhibidistilbert.kernels.llvm import threads as llvm_threads
from inhibidistilbert.kernels.llvm.jit import CompilerUnavailable, Machine, object_code
from inhibidistilbert.kernels.masks import KeyMasks
from inhibidistilbert.kernels.reference import naive_inhibitor_attention
from inhibidistilbert.testing.reference import (
    NOT_FINITE,
    SPOILT,
    Case,
    Inputs,
    Result,
    assert_agrees,
    draw,
    judge,
    judged,
    relative_rms,
    run,
    spoilt,
)
from tests.helpers.cpu_machines import ARM, AVX512, MACHINES

pytestmark = pytest.mark.skipif(not MACHINES, reason="nothing can be compiled here")

FLAGS = [{"signed": signed, "centered": centered} for signed in (True, False) for centered in (True, False)]
NAMES = ("query", "key", "value", "alpha", "beta", "gamma")


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The code of each processor in turn."""
    monkeypatch.setattr(cpu, "machine", lambda: MACHINES[request.param])
    return request.param


@pytest.fixture
def every_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sets the number of threads; small work is shared as well."""
    monkeypatch.setattr(cpu, "WORTH_A_THREAD", 1)
    cpu.make_plan.cache_clear()
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
    cpu.make_plan.cache_clear()


def float64_output(query: Tensor, key: Tensor, value: Tensor, alpha=0.5, beta=1.0, gamma=1.0, **options) -> Tensor:
    """The definition in float64, for inputs too large for the judge's loop."""
    masks = KeyMasks(options.get("key_padding_mask"), options.get("key_dropout_mask"), None, options.get("causal", False))
    scalars = (torch.full((1, 1, 1, 1), x, dtype=torch.float64) for x in (alpha, beta, gamma))
    form = Form("mean" if options.get("centered", True) else None, options.get("signed", True))
    return naive_inhibitor_attention(query.double(), key.double(), value.double(), *scalars, None, masks, form, False)[0]


def results(tensors: dict[str, Tensor], incoming: Tensor, **options) -> list[Tensor]:
    """Output and all gradients."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    output = inhibitor_attention(**leaves, **options, backend="cpu")
    return [output.detach(), *torch.autograd.grad(output, list(leaves.values()), incoming)]


def random_tensors(batch=2, heads=3, queries=37, keys=41, size=24) -> dict[str, Tensor]:
    shapes = {"query": queries, "key": keys, "value": keys}
    tensors = {name: torch.randn(batch, heads, length, size) for name, length in shapes.items()}
    return tensors | {name: 0.5 + torch.rand(heads) for name in ("alpha", "beta", "gamma")}


# Every width


# One and a half vectors, their multiples, and one off them, for widths 4, 8 and 16.
@pytest.mark.parametrize(
    "flags", FLAGS, ids=["signed-centered", "signed-uncentered", "unsigned-centered", "unsigned-uncentered"]
)
@pytest.mark.parametrize(
    ("queries", "keys", "size"), [(1, 33, 16), (17, 6, 3), (24, 24, 24), (16, 31, 8), (33, 17, 20)], ids=lambda n: str(n)
)
def test_every_width(machine: str, queries: int, keys: int, size: int, flags: dict) -> None:
    inputs, want = judged(Case(B=1, M=queries, N=keys, D=size, seed=1, **flags))
    assert_agrees(run(inputs, "cpu"), want)


@pytest.mark.parametrize(
    "case",
    [
        Case(B=3, M=21, N=37, D=9, padding="holes", causal=True, dropout=True, scalars=(2,)),
        Case(M=37, N=21, D=9, causal=True, padding="left"),
        Case(M=20, N=20, D=12, ties=True, dropout=True, gamma=-0.8),
        Case(M=20, N=70, D=7, causal=True, offset=100.0),
        Case(B=1, H=1, M=9, N=150, D=4, padding="right", signed=False),
        Case(B=1, H=1, M=5, N=6, D=140),
        Case(M=21, N=70, D=9, causal=True, dropout=True, inhibition="gate", center="least", delta=0.9, alpha=-0.3),
        Case(M=9, N=37, D=20, padding="holes", inhibition="gate", alpha=0.2, scalars=(2,)),
        Case(M=17, N=33, D=12, padding="left", signed=False, center="least", delta=0.7, alpha=-0.3),
    ],
    ids=str,
)
def test_every_width_with_masks(machine: str, case: Case) -> None:
    inputs, want = judged(case)
    assert_agrees(run(inputs, "cpu"), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_every_width_rounds_to_half_types_as_torch_does(machine: str, dtype: torch.dtype) -> None:
    """Every pattern goes through as it is, subnormal numbers too; every sum is rounded once, to the nearest."""
    patterns = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    # One query and one key: with gamma = 0 and alpha below 0 nothing is inhibited, and the output is the value.
    value = patterns[patterns.isfinite()].reshape(-1, 1, 1, 64)
    zeros = torch.zeros_like(value)
    got = inhibitor_attention(zeros, zeros, value, alpha=-1.0, gamma=0.0, backend="cpu")
    assert torch.equal(got, value)
    scale = torch.tensor([1 / 3])
    got = inhibitor_attention(zeros, zeros, value, alpha=-1.0, beta=scale, gamma=0.0, backend="cpu")
    assert torch.equal(got, (value.float() * scale).to(dtype))


@pytest.mark.parametrize(("foreign", "elf_machine"), [(ARM, 183), (AVX512, 62)], ids=["arm", "avx512"])
def test_code_for_others_can_be_generated(foreign: Machine, elf_machine: int) -> None:
    """On any machine: no instruction of another processor is asked for, and no function of a C library."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    for generate in (cpu.forward_ir, cpu.backward_ir, partial(encoder_ir, int8=True), partial(encoder_ir, int8=False)):
        code = object_code(generate(foreign), foreign)
        assert code[:4] == b"\x7fELF"
        assert int.from_bytes(code[18:20], "little") == elf_machine
        assert not any(name in code for name in (b"memset", b"memcpy", b"fmaxf", b"fmaf"))


# A few queries, of whole vectors of channels


@pytest.mark.parametrize(
    "case",
    [
        Case(M=1, N=1, D=16),
        Case(M=1, N=150, D=64, causal=True, padding="left"),
        Case(M=4, N=70, D=80, causal=True, padding="holes", dropout=True, scalars=(2,)),
        Case(M=3, N=2, D=16, causal=True),
        Case(M=2, N=33, D=32, ties=True, signed=False, dropout=True, gamma=-0.8),
        Case(M=2, N=65, D=16, centered=False, offset=100.0, beta=-1.3),
        Case(M=3, N=70, D=96, dropout=True, inhibition="gate", center="least", delta=0.9, alpha=-0.3),
        Case(M=1, N=37, D=16, padding="holes", inhibition="gate", alpha=0.2, scalars=(2, 2)),
        Case(M=4, N=33, D=16, padding="left", signed=False, center="least", delta=0.7, alpha=-0.3),
    ],
    ids=str,
)
def test_few_queries(machine: str, case: Case) -> None:
    inputs, want = judged(case)
    assert_agrees(run(inputs, "cpu"), want)


@pytest.mark.parametrize("place", SPOILT)
def test_few_queries_see_what_is_not_finite(place: str) -> None:
    for number in NOT_FINITE:
        inputs, want = spoilt(Case(M=3, N=37, D=16, padding="holes", causal=True, dropout=True), number, place)
        assert_agrees(run(inputs, "cpu"), want)


def test_few_queries_are_those_of_many() -> None:
    """Alone, or within a panel: the same but for rounding."""
    tensors = random_tensors(queries=20, keys=20, size=64)
    whole = inhibitor_attention(**tensors, causal=True, backend="cpu")
    for count in (1, 4, 5):
        last = tensors | {"query": tensors["query"][:, :, -count:]}
        got = inhibitor_attention(**last, causal=True, backend="cpu")
        torch.testing.assert_close(got, whole[:, :, -count:], rtol=1e-5, atol=1e-4)


# Layouts


def _padded_channels(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, torch.full_like(tensor, math.nan)], -1)[..., : tensor.shape[-1]]


def _channels_first(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT


def _shifted(tensor: Tensor) -> Tensor:
    """Not at a whole vector's address."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    return room.copy_(tensor)


@pytest.mark.parametrize("layout", [_padded_channels, _channels_first, _shifted])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_a_layout_changes_no_bit(layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    for size in (16, 21):
        tensors = random_tensors(size=size)
        named = ("query", "key", "value")
        tensors = {name: x.to(dtype) if name in named else x for name, x in tensors.items()}
        incoming = torch.randn(tensors["query"].shape).to(dtype)
        want = results(tensors, incoming)
        got = results({name: layout(x) if name in named else x for name, x in tensors.items()}, layout(incoming))
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)


def test_expanded_gradient_and_masks() -> None:
    """The gradient of a sum has no memory of its own: all its strides are 0."""
    tensors = random_tensors()
    real = torch.rand(1, 41) < 0.7
    want = results(tensors, torch.ones(2, 3, 37, 24), key_padding_mask=real.repeat(2, 1))
    got = results(tensors, torch.ones(1).expand(2, 3, 37, 24), key_padding_mask=real.expand(2, -1))
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@st.composite
def calls(draw_from: st.DrawFn) -> tuple[Case, int, int]:
    """A case, and what is left out of a larger tensor: every `step`-th channel, the first `offset` tokens."""
    lengths, flag = st.integers(1, 40), st.booleans()
    case = Case(
        B=draw_from(st.integers(1, 3)),
        H=draw_from(st.integers(1, 3)),
        M=draw_from(lengths),
        N=draw_from(lengths),
        D=draw_from(lengths),
        signed=draw_from(flag),
        centered=draw_from(flag),
        causal=draw_from(flag),
        padding=draw_from(st.sampled_from([None, "left", "right", "holes"])),
        dropout=draw_from(flag),
        alpha=draw_from(st.sampled_from([-1.0, 0.0, 0.5, 3.0])),
        beta=draw_from(st.sampled_from([-1.3, 1e-3, 1e3])),
        gamma=draw_from(st.sampled_from([-0.8, 0.0, 0.05, 1.0])),
        offset=draw_from(st.sampled_from([0.0, 100.0])),
        off_kinks=False,
        seed=draw_from(st.integers(0, 1000)),
    )
    return case, draw_from(st.integers(1, 3)), draw_from(st.integers(0, 2))


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(calls())
def test_any_call_is_the_definition(call: tuple[Case, int, int]) -> None:
    """Shapes, strides, masks and scales as they come; the gradients are not compared so near the kinks, but they exist."""
    case, step, offset = call
    inputs = draw(case)

    def inside_a_larger_one(tensor: Tensor) -> Tensor:
        batch, heads, length, size = tensor.shape
        room = torch.full((batch, length + offset, heads, size * step), math.nan)
        return room[:, offset:, :, ::step].transpose(1, 2).copy_(tensor)

    tensors = {n: inside_a_larger_one(t) if n in ("query", "key", "value") else t for n, t in inputs.tensors.items()}
    got = run(Inputs(tensors, inputs.options, inputs.grad_output, inputs.grad_scores), "cpu")
    want = run(
        Inputs({n: t.double() for n, t in inputs.tensors.items()}, inputs.options, inputs.grad_output, inputs.grad_scores),
        "naive",
    )
    assert relative_rms(got.output, want.output) < 1e-5
    assert all(gradient.isfinite().all() for gradient in got.gradients.values())


# Extremes


def _one_head_far_away(x: Tensor) -> Tensor:
    return x + torch.tensor([0.0, 1000.0]).view(1, 2, 1, 1)


def _mixed_channels(x: Tensor) -> Tensor:
    return x + 100 * torch.linspace(-3, 3, x.shape[-1])


def _one_wild_channel(x: Tensor) -> Tensor:
    return x * torch.tensor([1000.0] + [1.0] * (x.shape[-1] - 1))


def _clusters(x: Tensor) -> Tensor:
    """Two far from each other, in turns: queries and keys have much in common with half of the others, all of it large."""
    return x + 1000.0 * (torch.arange(x.shape[2]) % 2 * 2 - 1)[:, None]


def _one_outlier(x: Tensor) -> Tensor:
    return torch.cat([x[:, :, :1] + 1e4, x[:, :, 1:]], 2)


@pytest.mark.parametrize("centered", [True, False], ids=["centered", "uncentered"])
@pytest.mark.parametrize("place", [_one_head_far_away, _mixed_channels, _one_wild_channel, _clusters, _one_outlier])
def test_distances_are_exact_wherever_queries_and_keys_lie(place: Callable[[Tensor], Tensor], centered: bool) -> None:
    query, key, value = (torch.randn(1, 2, 48, 64) for _ in range(3))
    query, key = place(query), place(key)
    scale = torch.cdist(query.double(), key.double(), p=1).median().item() / 8
    for size in (1.0, 9.0, scale):
        got = inhibitor_attention(query, key, size * value, centered=centered, backend="cpu")
        want = float64_output(query, key, size * value, centered=centered)
        assert relative_rms(got, want) < 1e-5, size


@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_long_rows_and_large_heads(size: int, scale: float) -> None:
    query, key, value = torch.randn(1, 1, 20, size), torch.randn(1, 1, 700, size), scale * torch.randn(1, 1, 700, size)
    got = inhibitor_attention(query, key, value, backend="cpu")
    assert relative_rms(got, float64_output(query, key, value)) < 1e-5


def test_what_is_fully_inhibited_cancels_exactly() -> None:
    query, key, value = (torch.randn(1, 2, 200, 32) for _ in range(3))
    assert not inhibitor_attention(query, key, 1e-3 * value, alpha=9.0, backend="cpu").any()


def test_few_values_that_pass_are_not_lost_among_the_others() -> None:
    query, key, value = (torch.randn(1, 2, 300, 32) for _ in range(3))
    options = {"alpha": 3.7, "causal": True}
    want = float64_output(query, key, value, **options)
    assert 0 < (want[:, :, -1] != 0).double().mean() < 0.9
    assert relative_rms(inhibitor_attention(query, key, value, **options, backend="cpu"), want) < 1e-5


# Every place on this machine, and each of the others' codes with some.
@pytest.mark.parametrize(
    ("machine", "place"),
    [
        pytest.param(name, place, marks=() if name == "host" or i % len(MACHINES) == j else pytest.mark.slow)
        for j, name in enumerate(MACHINES)
        for i, place in enumerate(SPOILT)
    ],
    indirect=["machine"],
)
def test_every_width_sees_what_is_not_finite(machine: str, place: str) -> None:
    """A model that has diverged shows it; what no query sees does not."""
    flaws: list[bool] = []
    run_plainly = cpu.torch_forward
    with mock.patch.object(cpu, "torch_forward", lambda *a: flaws.append(True) or run_plainly(*a)):
        for number in NOT_FINITE:
            inputs, want = spoilt(Case(M=20, N=37, D=9, padding="holes", causal=True, dropout=True), number, place)
            assert_agrees(run(inputs, "cpu"), want)
    assert len(flaws) == (0 if place in ("nothing", "gradient") else len(NOT_FINITE)), "the slow form is for these alone"


def test_scores_beyond_float32_are_infinite(machine: str) -> None:
    """And inhibit everything, as in float64, where they are finite."""
    inputs = draw(Case(gamma=3e38, centered=False, off_kinks=False))
    assert_agrees(run(inputs, "cpu"), judge(inputs))


# Threads


def test_threads_change_no_bit(every_thread: Callable[[int], None]) -> None:
    tensors = random_tensors(batch=1, queries=130)
    incoming = torch.randn(tensors["query"].shape)
    every_thread(1)
    want = results(tensors, incoming)
    for count in (2, 3, 7):
        every_thread(count)
        for got, expected in zip(results(tensors, incoming), want, strict=True):
            assert torch.equal(got, expected), count


def test_threads_of_python_do_as_well(every_thread: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = random_tensors()
    incoming = torch.randn(tensors["query"].shape)
    every_thread(1)
    want = results(tensors, incoming)
    monkeypatch.setattr(llvm_threads, "_openmp_parallel", lambda: None)
    every_thread(3)
    for got, expected in zip(results(tensors, incoming), want, strict=True):
        assert torch.equal(got, expected)


def test_calls_at_the_same_time(every_thread: Callable[[int], None]) -> None:
    every_thread(2)
    work = [(random_tensors(queries=20 + n), torch.randn(2, 3, 20 + n, 24)) for n in range(4)]
    want = [results(*one) for one in work]
    wrong: list[int] = []

    def repeat(number: int) -> None:
        for _ in range(20):
            got = results(*work[number])
            if not all(torch.equal(a, b) for a, b in zip(got, want[number], strict=True)):
                wrong.append(number)

    threads = [threading.Thread(target=repeat, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORK = """
import os, sys, torch
from inhibidistilbert import inhibitor_attention
from inhibidistilbert.kernels.cpu import attention as cpu
cpu.WORTH_A_THREAD = 1
torch.set_num_threads(3)
tensors = torch.randn(3, 1, 4, 70, 16).unbind()
want = inhibitor_attention(*tensors, backend="cpu")
child = os.fork()
if child == 0:
    same = torch.equal(inhibitor_attention(*tensors, backend="cpu"), want)
    os._exit(0 if same and torch.get_num_threads() == 3 else 1)
assert torch.equal(inhibitor_attention(*tensors, backend="cpu"), want)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_computes_too() -> None:
    """The threads of the parent are not in the child; waiting for them would take for ever."""
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=120)


# Memory


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_a_thread_needs_less_than_a_megabyte(lanes: int, backward: bool) -> None:
    _, at_512 = workspace_layout(lanes, 512, 64, backward)
    _, at_2048 = workspace_layout(lanes, 2048, 64, backward)
    assert at_512 < 1 << 20
    assert at_2048 < 4 * at_512


def test_nothing_of_size_queries_by_keys_is_allocated() -> None:
    tensors = [torch.randn(1, 1, 2048, 16, requires_grad=True) for _ in range(3)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        output = inhibitor_attention(*tensors, backend="cpu")
        torch.autograd.grad(output, tensors, torch.ones_like(output))
    allocated = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < allocated < 2048 * 2048 * 4 / 4


def test_what_is_kept_by_shape_has_a_bound():
    """A server sees new lengths for as long as it runs."""
    package = cpu.__package__
    modules = [
        importlib.import_module(found.name) for found in pkgutil.walk_packages(sys.modules[package].__path__, f"{package}.")
    ]
    kept = {value for module in modules for value in vars(module).values() if hasattr(value, "cache_parameters")}
    by_shape = {value for value in kept if value.__module__.startswith(package)}
    assert len(by_shape) >= 6
    assert [value.__qualname__ for value in by_shape if value.cache_parameters()["maxsize"] is None] == []


# Within torch


def test_tracers_see_one_operator_and_others_pay_for_none() -> None:
    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            names.append(function.name())
            return function(*arguments, **(options or {}))

    names: list[str] = []
    tensors = random_tensors()
    want = inhibitor_attention(**tensors, backend="cpu")
    with Calls():
        got = inhibitor_attention(**tensors, backend="cpu")
    assert torch.equal(got, want)
    assert sum(name.endswith("::forward") for name in names) == 1

    with torch.profiler.profile() as profile:
        inhibitor_attention(**tensors, backend="cpu")
    assert not [event.name for event in profile.events() if "inhibitor" in event.name]


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_in_one_graph(compiler: str) -> None:
    torch._dynamo.reset()
    tensors = random_tensors()
    real, incoming = torch.rand(2, 41) < 0.7, torch.randn(tensors["query"].shape)
    leaves = [tensors[name].requires_grad_() for name in NAMES]

    def call(*operands: Tensor) -> Tensor:
        named = dict(zip(NAMES, operands, strict=True))
        return inhibitor_attention(**named, key_padding_mask=real) * 2

    want, got = call(*leaves), torch.compile(call, fullgraph=True, backend=compiler)(*leaves)
    assert torch.equal(got, want)
    pairs = (torch.autograd.grad(output, leaves, incoming) for output in (got, want))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_gradient_checkpointing(reentrant: bool) -> None:
    tensors = random_tensors()
    incoming = torch.randn(tensors["query"].shape)
    want = results(tensors, incoming)[1:]
    leaves = [tensors[name].clone().requires_grad_() for name in NAMES]

    def call(*operands: Tensor) -> Tensor:
        return inhibitor_attention(**dict(zip(NAMES, operands, strict=True)), backend="cpu")

    checkpoint(call, *leaves, use_reentrant=reentrant).backward(incoming)
    for leaf, expected in zip(leaves, want, strict=True):
        assert torch.equal(leaf.grad, expected)


# Refusals


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(1, 1, 2, 4, dtype=torch.float64), "float64"),
        (torch.zeros(1, 1, 2, 513), "at most 512 channels, and these have 513"),
        (torch.zeros(1, 1, 2, 4, device="meta"), "the tensors are on meta"),
    ],
    ids=["float64", "head-size", "device"],
)
def test_refusal_says_why(tensor: Tensor, words: str) -> None:
    assert words in cpu.cpu_refusal(tensor)
    with pytest.raises(ValueError, match=words):
        inhibitor_attention(tensor, tensor, tensor, backend="cpu")


def test_what_is_refused_takes_the_plain_form() -> None:
    tensors = torch.randn(3, 1, 1, 5, 513).unbind()
    assert torch.equal(inhibitor_attention(*tensors), inhibitor_attention(*tensors, backend="torch"))


@pytest.fixture
def fresh_answer() -> Iterator[None]:
    """Whether anything can be compiled is asked again, in the test and after it."""
    jit.refusal.cache_clear()
    said = set(notice._said)
    notice._said.clear()
    yield
    notice._said.update(said)
    jit.refusal.cache_clear()


def _fails(error: Exception) -> Callable[..., object]:
    def fail(*arguments: object) -> object:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CompilerUnavailable("there is no compiler"), "there is no compiler"),
        (RuntimeError("bad IR"), "RuntimeError: bad IR"),
    ],
    ids=["unavailable", "compiling-fails"],
)
def test_without_a_compiler_the_plain_form_takes_over(
    error: Exception, words: str, fresh_answer: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jit, "entry", _fails(error))
    tensors = torch.randn(3, 1, 2, 5, 4).unbind()
    plain = [inhibitor_attention(*tensors, backend=name) for name in ("torch", "naive")]
    assert not caplog.records, "who asks for a plain form knows"
    got = [inhibitor_attention(*tensors) for _ in range(3)]
    assert torch.equal(got[2], plain[0])
    assert [words in record.message and "20 to 70 times slower" in record.message for record in caplog.records] == [True]
    assert caplog.records[0].levelno == logging.WARNING
    with pytest.raises(ValueError, match=words):
        inhibitor_attention(*tensors, backend="cpu")


BLOCKED = """
import sys

class NoLlvmlite:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "llvmlite":
            raise ImportError("No module named 'llvmlite'")

sys.meta_path.insert(0, NoLlvmlite())
import torch
from inhibidistilbert import InhibiDistilBertForSequenceClassification, inhibitor_attention
from inhibidistilbert.prediction import default_checkpoint
InhibiDistilBertForSequenceClassification.from_pretrained(default_checkpoint())
print("loaded", file=sys.stderr)
tensors = torch.randn(3, 1, 2, 5, 4).unbind()
assert torch.equal(inhibitor_attention(*tensors), inhibitor_attention(*tensors, backend="torch"))
compiled = torch.compile(inhibitor_attention, fullgraph=True, backend="eager")(*tensors)
assert (compiled - inhibitor_attention(*tensors)).norm() < 1e-5 * compiled.norm()
try:
    inhibitor_attention(*tensors, backend="cpu")
except ValueError as error:
    print(error)
"""


# That a folder's code runs without it and says so stays, and what the operator says without it.
@pytest.mark.slow
def test_without_llvmlite() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], check=True, timeout=300, capture_output=True, text=True)
    assert "pip install llvmlite" in done.stdout
    assert done.stdout.count("\n") == 1
    if not torch.accelerator.is_available():
        said, _, calls = done.stderr.partition("loaded")
        assert "pip install llvmlite. That is 20 to 70 times slower than softmax attention" in said
        assert "llvmlite" not in calls, "once a process"


def test_results_have_the_layout_the_model_reads() -> None:
    tensors = random_tensors()
    output, *gradients = results(tensors, torch.randn(tensors["query"].shape))
    for tensor in (output, *gradients[:3]):
        assert tensor.transpose(1, 2).is_contiguous()


def test_judge_of_large_inputs_is_the_judge_of_small_ones() -> None:
    inputs = draw(Case(padding="holes", dropout=True, causal=True))
    want: Result = judge(inputs)
    named = {n: inputs.tensors[n].item() if n in ("alpha", "beta", "gamma") else inputs.tensors[n] for n in NAMES}
    assert relative_rms(float64_output(**named, **inputs.options), want.output) < 1e-6
