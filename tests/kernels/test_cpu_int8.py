"""Compiled int8 attention agrees with its definition to the bit, on every kind of processor this one can stand in for."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from inhibidistilbert import inhibitor_attention
from inhibidistilbert.kernels.cpu import int8_attention as int8
from inhibidistilbert.kernels.cpu.code.int8 import int8_ir
from inhibidistilbert.kernels.llvm.jit import Machine, host_machine, object_code
from inhibidistilbert.testing.reference import NOT_FINITE, SPOILT, Case, draw, spoil
from tests.helpers.cpu_machines import PROCESSORS, processor
from tests.helpers.emulated_x86 import emulated
from tests.kernels.test_int8 import form_options

_REFUSAL = int8.int8_refusal(torch.zeros(1, 1, 1, 1))
pytestmark = pytest.mark.skipif(_REFUSAL is not None, reason=str(_REFUSAL))


def both(query: Tensor, key: Tensor, value: Tensor, **options) -> tuple[Tensor, Tensor]:
    """The result of the compiled form and of the definition."""
    got = inhibitor_attention(query, key, value, quantized=True, backend="cpu", **options)
    return got, inhibitor_attention(query, key, value, quantized=True, backend="torch", **options)


def inputs(*shape: int, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Standard normal key and value of `shape` `(B, H, N, d)`; queries half as wide again."""
    batch, heads, keys, size = shape
    return 1.5 * torch.randn(batch, heads, queries or keys, size), torch.randn(shape), torch.randn(shape)


# More keys than are summed at once, fewer than a vector, one; head sizes that are no whole vectors; tiles that are not full.
SHAPES = [(1, 2, 128, 64, 30), (2, 3, 64, 32, 64), (1, 1, 3, 16, 5), (2, 2, 77, 48, 33), (1, 2, 1100, 5, 9), (1, 1, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-H{}-N{}-D{}-M{}".format(*s))
@pytest.mark.parametrize("centered", [True, False], ids=["centered", "uncentered"])
@pytest.mark.parametrize("name", ["host", *PROCESSORS])
def test_it_is_the_definition(name: str, centered: bool, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    machine = processor(name)
    monkeypatch.setattr(int8, "machine", lambda: machine)
    *sizes, queries = shape
    for signed in (True, False):
        for causal in (False, True):
            tensors = inputs(*sizes, queries=queries)
            alpha = 0.5 if centered else -1.4 * sizes[-1] ** 0.5
            masks = {mask: torch.rand(sizes[0], sizes[2]) < 0.7 for mask in ("key_padding_mask", "key_dropout_mask")}
            for options in ({}, masks):
                got, want = both(*tensors, alpha=alpha, signed=signed, causal=causal, centered=centered, **options)
                assert torch.equal(got, want), (signed, causal, bool(options))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-H{}-N{}-D{}-M{}".format(*s))
@pytest.mark.parametrize("name", ["host", *PROCESSORS])
def test_forms_beyond_the_paper(name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    machine = processor(name)
    monkeypatch.setattr(int8, "machine", lambda: machine)
    *sizes, queries = shape
    query, key, value = inputs(*sizes, queries=queries)
    query[:, :, 0], key[:, :, -1] = key[:, :, 0], key[:, :, 0]  # two nearest keys
    padding, dropout = torch.rand(sizes[0], sizes[2]) < 0.7, torch.rand(sizes[0], sizes[2]) < 0.7
    padding[-1] = sizes[0] == 1
    masks = {"key_padding_mask": padding, "key_dropout_mask": dropout, "causal": True}
    alphas = {"mean": 0.2, "least": -0.7, None: -1.4 * sizes[-1] ** 0.5}
    for center, alpha in alphas.items():
        for inhibition, delta in (("gate", None), ("gate", 0.8), ("threshold", 0.8), ("threshold", -0.3), ("unsigned", 0.8)):
            for masked in ({}, masks):
                options = {"alpha": alpha, "delta": delta, **form_options(center, inhibition), **masked}
                got, want = both(query, key, value, **options)
                assert torch.equal(got, want), (center, inhibition, delta, bool(masked))


@pytest.mark.parametrize(
    "name", ["avx512", *(pytest.param(x, marks=pytest.mark.slow) for x in ("avx2-vnni", "avx512-vnni"))]
)
def test_longer_vectors_without_the_hardware(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_machine()
    cpu, features, lanes, registers = PROCESSORS[name]

    def generate(machine: Machine, size: int) -> str:
        return emulated(int8_ir(Machine(host.triple, cpu, features, lanes, registers), size))

    machine = replace(host, lanes=lanes, registers=registers)
    int8.make_plan.cache_clear()  # which code a plan has it does not know
    monkeypatch.setattr(int8, "int8_ir", generate)
    monkeypatch.setattr(int8, "machine", lambda: machine)
    monkeypatch.setattr(int8, "_problem", lambda size: None)
    query, key, value = inputs(2, 2, 77, 48, queries=19)
    masks = {"key_padding_mask": torch.rand(2, 77) < 0.7, "causal": True}
    for form in (("mean", "threshold"), ("mean", "gate"), ("least", "gate"), ("least", "unsigned"), (None, "threshold")):
        for options in ({}, {"delta": 0.7, **masks}):
            got, want = both(query, key, value, alpha=0.0 if form[0] else -9.0, **form_options(*form), **options)
            assert want.abs().max() > 0
            assert torch.equal(got, want), (form, options.keys())
    int8.make_plan.cache_clear()


@pytest.mark.parametrize("gamma", [1.0, -1.0, 0.0, 1e-30, 40.0, -1e6])
@pytest.mark.parametrize("alpha", [0.5, 0.0, -3.0, 1e10, -1e10])
@pytest.mark.parametrize("centered", [True, False], ids=["centered", "uncentered"])
def test_extreme_scalars(centered: bool, alpha: float, gamma: float) -> None:
    tensors = inputs(1, 2, 24, 16)
    for options in ({}, {"inhibition": "gate"}, *({"center": "least"},) * centered):
        for delta in (None, 1.0, 1e6, -1e-6, 0.0):
            got, want = both(*tensors, alpha=alpha, gamma=gamma, beta=-2.0, delta=delta, centered=centered, **options)
            assert torch.equal(got, want), (options, delta)


SCALES = [(1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1e-6, 1), (1, 1, 1e-6), (1e6, 1, 1), (1, 1e10, 1e-10)]


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("centered", [True, False], ids=["centered", "uncentered"])
def test_extreme_grids(centered: bool, scale: tuple[float, float, float]) -> None:
    tensors = [factor * x for factor, x in zip(scale, inputs(1, 2, 24, 16), strict=True)]
    for options in ({}, {"inhibition": "gate", "delta": 0.7}, *({"center": "least", "delta": 0.7},) * centered):
        got, want = both(*tensors, centered=centered, **options)
        assert torch.equal(got, want), options


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("spoiled", [0, 1, 2], ids=["query", "key", "value"])
def test_numbers_that_are_not_finite(spoiled: int, bad: float) -> None:
    for centered in (True, False):
        tensors = inputs(1, 2, 24, 16)
        tensors[spoiled][0, 1, 3, 5] = bad
        got, want = both(*tensors, centered=centered)
        assert want.isnan().any()
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got.nan_to_num(), want.nan_to_num())


@pytest.mark.parametrize("name", ["host", *PROCESSORS])
@pytest.mark.parametrize("place", [place for place in SPOILT if place != "gradient"])
def test_rows_that_are_not_finite(place: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ones as in the definition: those that see it."""
    machine = processor(name)
    monkeypatch.setattr(int8, "machine", lambda: machine)
    for signed, causal in ((True, True), (False, True), (True, False)):
        drawn = draw(Case(M=20, N=37, D=9, padding="holes", dropout=True, signed=signed, causal=causal, scalars=(2,)))
        for number in NOT_FINITE:
            spoilt = spoil(drawn, number, place)
            got, want = both(**spoilt.tensors, **spoilt.options)
            assert torch.equal(got.nan_to_num(nan=1e30), want.nan_to_num(nan=1e30))
            assert got.isfinite().all() == (place == "nothing" or (number == -torch.inf and "value" in place and not signed))


def test_no_finite_key() -> None:
    query, key, value = inputs(1, 2, 24, 16)
    got, want = both(query, torch.full_like(key, torch.nan), value)
    assert got.isnan().all()
    assert want.isnan().all()


def test_padded_positions_are_never_read() -> None:
    query, key, value = inputs(2, 2, 24, 16)
    mask = torch.rand(2, 24) < 0.6
    spoiled = [x.masked_fill(~mask[:, None, :, None], torch.nan) for x in (key, value)]
    assert torch.equal(both(query, *spoiled, key_padding_mask=mask)[0], both(query, key, value, key_padding_mask=mask)[1])


def test_scalars_of_each_head() -> None:
    alpha, beta, gamma = torch.tensor([0.5, -0.5, 1.0]), torch.tensor([1.0, -2.0, 0.0]), torch.tensor([-1.0, 0.0, 1.0])
    for options in ({}, {"delta": torch.tensor([0.5, -1.0, torch.nan]), "inhibition": "gate"}):
        got, want = both(*inputs(2, 3, 24, 16), alpha=alpha, beta=beta, gamma=gamma, **options)
        assert torch.equal(got.nan_to_num(nan=1e30), want.nan_to_num(nan=1e30))
        assert got[:, 2].isnan().all() == bool(options)


LAYOUTS = {
    "as the projections leave them": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "channels apart": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every second": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2],
    "one head for all": lambda x: x[:, :1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout: str) -> None:
    tensors = [LAYOUTS[layout](x) for x in inputs(2, 3, 24, 16)]
    mask = torch.stack([torch.rand(24, 2) < 0.7, torch.zeros(24, 2, dtype=torch.bool)], -1)[..., 0].T
    got, want = both(*tensors, key_padding_mask=mask, key_dropout_mask=mask.flip(0))
    assert torch.equal(got, want)
    assert got.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [16, 5])
def test_dtypes(size: int, dtype: torch.dtype) -> None:
    got, want = both(*(x.to(dtype) for x in inputs(2, 3, 24, size)))
    assert got.dtype == dtype
    assert torch.equal(got, want)


@pytest.mark.parametrize("shape", [(0, 2, 5, 4), (2, 0, 5, 4), (2, 2, 0, 4), (2, 2, 5, 0)], ids=str)
@pytest.mark.parametrize("queries", [0, 3])
def test_empty(shape: tuple[int, ...], queries: int) -> None:
    query = torch.randn(*shape[:2], queries, shape[3])
    got, want = both(query, torch.randn(shape), torch.randn(shape))
    assert torch.equal(got, want)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads(threads: int) -> None:
    """However the heads and their queries are shared out."""
    before = torch.get_num_threads()
    try:
        for shape in ((1, 1, 300, 64), (2, 3, 128, 64), (1, 5, 200, 32)):
            tensors, options = inputs(*shape), {"key_padding_mask": torch.rand(shape[0], shape[2]) < 0.8, "causal": True}
            torch.set_num_threads(threads)
            got, want = both(*tensors, **options)
            assert torch.equal(got, want)
    finally:
        torch.set_num_threads(before)


def test_all_heads_are_shared_out() -> None:
    for heads in (1, 5, 12, 100):
        for tiles in (1, 3, 64):
            for threads in (1, 2, 8, 64):
                assert 1 <= int8._parts(heads, tiles, 8, threads) <= tiles
    assert int8._parts(12, 64, 8, 1) == 1
    assert int8._parts(1, 64, 8, 8) == 8


def test_heads_beyond_the_largest_are_left_to_plain_torch() -> None:
    tensors = inputs(1, 1, 6, 300)
    with pytest.raises(ValueError, match="its int8 form takes heads of at most 256 channels, and these have 300"):
        inhibitor_attention(*tensors, quantized=True, backend="cpu")
    got = inhibitor_attention(*tensors, quantized=True)
    assert torch.equal(got, inhibitor_attention(*tensors, quantized=True, backend="torch"))


@pytest.mark.parametrize("keys", [519, 527, 8128])
def test_the_largest_distances_do_not_wrap(keys: int) -> None:
    """All channels of all keys but one are at one end of the grid, and the queries at the other: their sum is near 2^31."""
    key = torch.zeros(1, 1, keys, 256)
    key[0, 0, 0] = 1.0
    for delta in (None, -1e-6):
        got, want = both(torch.ones(1, 1, 3, 256), key, torch.randn(1, 1, keys, 256), gamma=1e4, alpha=0.1, delta=delta)
        assert want.abs().max() > (1 if delta is None else 0)
        assert torch.equal(got, want)


def test_more_keys_than_a_float_counts() -> None:
    """Beyond 2^24 only even numbers are floats: the definition sums whole ones."""
    keys = 100_003
    value = torch.full((1, 1, keys, 1), 255.0)
    value[0, 0, ::7] = 254.0
    got, want = both(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, keys, 1), value, alpha=-1.0)
    assert torch.equal(got, want)
    assert torch.equal(got, value.sum(-2, keepdim=True))


def test_more_keys_than_a_sum_of_32_bits_holds() -> None:
    """They are left to plain torch, also where the compiled form was asked for."""
    keys = int8.LARGEST_KEYS + 1
    value = torch.full((1, 1, 1, 1), 3.0).expand(-1, -1, keys, -1)
    got = inhibitor_attention(value[:, :, :1], value, value, alpha=-1.0, quantized=True, backend="cpu")
    assert got.item() == pytest.approx(3.0 * keys, rel=1e-6)
    scalars = [torch.ones(1)] * 3
    with pytest.raises(ValueError, match=f"takes up to {int8.LARGEST_KEYS} keys, and these are {keys}"):
        int8.int8_attention(value[:, :, :1], value, value, None, None, *scalars, None, True, True, False)


def test_lazy_views_and_storages_that_were_freed() -> None:
    tensors = inputs(2, 3, 24, 16)
    want = both(*tensors)[1]
    for place in range(3):
        changed = [torch._neg_view(-x) if n == place else x for n, x in enumerate(tensors)]
        assert torch.equal(both(*changed)[0], want)
        for dtype in (torch.float32, torch.bfloat16):
            changed = [x.to(dtype, copy=True) for x in tensors]
            changed[place].untyped_storage().resize_(16)
            name = ("query", "key", "value")[place]
            with pytest.raises(ValueError, match=f"{name} has no memory for its elements"):
                inhibitor_attention(*changed, quantized=True, backend="cpu")
    nothing = torch._efficientzerotensor((2, 3, 24, 16))
    assert torch.equal(both(nothing, *tensors[1:])[0], both(torch.zeros(2, 3, 24, 16), *tensors[1:])[1])


def test_as_an_operator_of_torch() -> None:
    scalars = [torch.tensor([x]) for x in (0.5, 1.0, 1.0)]
    mask = torch.rand(2, 24) < 0.7
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [x.to(dtype) for x in inputs(2, 3, 24, 16)]
        tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(int8._int8_op, (*tensors, mask, None, *scalars, None, True, True, False), test_utils=tests)


def test_under_torch_compile() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return 2 * inhibitor_attention(query, key, value, quantized=True)

    tensors = inputs(2, 3, 24, 16)
    assert torch.equal(compiled(*tensors), 2 * inhibitor_attention(*tensors, quantized=True))


# Processors that cannot run here are at least compiled for.
ELSEWHERE = {
    "neon": (Machine("aarch64-linux-gnu", "generic", "+neon", 4, 32), ("smlal", "mla", "mul")),
    "neon-i8mm": (Machine("arm64-apple-darwin", "apple-m2", "+neon,+dotprod,+i8mm", 4, 32), ("usdot",)),
    "avx2-vnni": (Machine("x86_64-linux-gnu", "alderlake", PROCESSORS["avx2-vnni"][1], 8, 16), ("vpdpbusd",)),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_code_for_other_processors(name: str) -> None:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine, instructions = ELSEWHERE[name]
    ir = int8_ir(machine, 64)
    assert len(object_code(ir, machine)) > 1000
    target = llvm.Target.from_triple(machine.triple).create_target_machine(cpu=machine.cpu, features=machine.features)
    assembly = target.emit_assembly(llvm.parse_assembly(ir))
    assert any(instruction in assembly for instruction in instructions)
