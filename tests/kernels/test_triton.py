"""The Triton kernels over all they distinguish, in Triton's interpreter where there is no GPU.

`make test` runs rows in which every value of every option occurs; `make test-full` those in which every pair of values of
any two options occurs together, and the full product of what selects code, at small lengths.
"""

import re
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from inhibidistilbert import inhibitor_attention
from inhibidistilbert.kernels.triton import launch
from inhibidistilbert.kernels.triton.launch import MAX_HEAD_SIZE, Tile, tile_for
from inhibidistilbert.testing.matrix import (
    BEYOND,
    BEYOND_SPOILT,
    DEVICE,
    DTYPES,
    FLAGS,
    HEAD_SIZES,
    LAYOUTS,
    MASKS,
    SCALAR_FORMS,
    SCALARS,
    TENSORS,
    Row,
    SpoiltRow,
    assert_row_agrees,
    on_device,
    pairs,
    run_triton,
    spoilt_pairs,
)
from inhibidistilbert.testing.reference import Case, Inputs, Result, assert_agrees, draw, judge, judged, relative_rms, run
from tests.helpers.slow import slow_but_first

pytestmark = pytest.mark.skipif(launch.triton is None, reason="triton is not installed")


def values(row: Row | SpoiltRow) -> set[tuple[str, Any]]:
    if isinstance(row, SpoiltRow):
        return values(row.row) | {("number", str(row.number)), ("place", row.place)}
    rest = {("lengths", (row.case.M, row.case.N)), ("scalars", row.scalars), ("layout", row.layout)}
    return {*vars(row.case).items()} | rest


@pytest.mark.parametrize("row", slow_but_first(pairs(), values), ids=str)
def test_every_pair_of_options(row: Row) -> None:
    assert_row_agrees(row, *judged(row.case))


@pytest.mark.parametrize("row", slow_but_first(spoilt_pairs(), values), ids=str)
def test_every_pair_of_options_where_something_is_not_finite(row: SpoiltRow) -> None:
    row.check()


def kept(row: Row | SpoiltRow, *which: int) -> Any:
    """A row as a parameter: slow, but for these."""
    of = BEYOND_SPOILT if isinstance(row, SpoiltRow) else BEYOND
    return pytest.param(row, marks=() if of.index(row) in which else pytest.mark.slow)


@pytest.mark.parametrize("row", [kept(row, 0, 4) for row in BEYOND], ids=str)
def test_forms_beyond_the_paper(row: Row) -> None:
    assert_row_agrees(row, *judged(row.case))


@pytest.mark.parametrize("row", [kept(row, 1) for row in BEYOND_SPOILT], ids=str)
def test_forms_beyond_the_paper_where_something_is_not_finite(row: SpoiltRow) -> None:
    row.check()


def test_the_nearest_keys_stand_at_alpha_exactly_in_every_pass() -> None:
    """Where a share ends, as it does with the usual alpha and delta: of the nearest keys, of which each has a double, and
    whatever the order in which a kernel sums a distance."""
    case = Case(B=1, H=1, M=6, N=8, D=40, inhibition="gate", center="least", alpha=-0.5, delta=1.0, off_kinks=False)
    inputs = draw(case)
    inputs.tensors["key"][:, :, 1::2] = inputs.tensors["key"][:, :, ::2]
    exact = Inputs(
        {n: x.double() for n, x in inputs.tensors.items()}, inputs.options, inputs.grad_output, inputs.grad_scores
    )
    # The definition subtracts before it adds alpha, where the triple loop may round.
    want = run(exact, "naive")
    assert_agrees(run_triton(inputs), want)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("queries", [1, 129])
def test_a_single_key(queries: int, causal: bool) -> None:
    """Not centred: the centred score of an only key is 0, whatever the query."""
    inputs, want = judged(Case(B=2, H=1, M=queries, N=1, D=16, causal=causal, centered=False))
    assert_agrees(run_triton(inputs), want)


# The scalars' form and the layout are data to the kernels: they go round, so that each meets all the rest.
ROUND = list(product(SCALAR_FORMS, LAYOUTS))
# Padding leaves two keys of so many at least: an only key has no centred score, and no gradient.
SMALL_LENGTHS = ((4, 4), (3, 5), (5, 4))


def first_meaningful(case: Case) -> tuple[Inputs, Result]:
    """Inputs and the judge's result, of the first draw that tests something.

    So few keys may all be dropped, and the terms of a gradient cancel beyond what any float32 sum can resolve: a scalar's by
    chance, the queries' and the keys' where each query sees but one.
    """
    for seed in range(50):
        inputs = draw(replace(case, seed=seed))
        want = judge(inputs)
        sums = torch.cat([want.gradients[name] for name in SCALARS]).abs()
        passed = all(want.gradients[name].square().mean().sqrt() > 1e-3 for name in TENSORS)
        if 0.2 <= want.active <= 0.8 and passed and ((sums == 0) | (sums > 0.05)).all():
            return inputs, want
    pytest.fail(f"no draw tests anything in {case}")


@pytest.mark.slow
@pytest.mark.parametrize("dropout", MASKS["dropout"], ids=["whole", "dropout"])
@pytest.mark.parametrize("padding", MASKS["padding"], ids=str)
@pytest.mark.parametrize("causal", FLAGS["causal"], ids=["full", "causal"])
@pytest.mark.parametrize("centered", FLAGS["centered"], ids=["centered", "uncentered"])
@pytest.mark.parametrize("signed", FLAGS["signed"], ids=["signed", "unsigned"])
def test_all_options(signed: bool, centered: bool, causal: bool, padding: str | None, dropout: bool) -> None:
    flags = {"signed": signed, "centered": centered, "causal": causal, "padding": padding, "dropout": dropout}
    for count, (dtype, size, lengths) in enumerate(product(DTYPES, HEAD_SIZES, SMALL_LENGTHS)):
        scalars, layout = ROUND[(count + count // len(SMALL_LENGTHS)) % len(ROUND)]
        row = Row.of(lengths, scalars, layout, dtype=dtype, D=size, **flags)
        assert_row_agrees(row, *first_meaningful(row.case))


# Tiles: a faster program, the same result


TILED = [
    pytest.param(Case(B=1, H=1, M=9, N=11, D=20, padding="holes", dropout=True), id="signed"),
    pytest.param(Case(B=1, H=1, M=9, N=11, D=20, signed=False, causal=True), id="unsigned", marks=pytest.mark.slow),
]
# For the head size 20, which is padded to 32 = C · T.
TILES = [
    pytest.param(Tile(1, 32, 1, 1, 1), marks=pytest.mark.slow),
    Tile(4, 8, 2, 2, 4),
    Tile(2, 16, 4, 16, 2),
    Tile(1, 2, 1, 2, 16),
]


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: "-".join(f"{name}{n}" for name, n in tile._asdict().items()))
@pytest.mark.parametrize("case", TILED)
def test_values_do_not_depend_on_the_tile(case: Case, tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, want = judged(case)
    usual = run_triton(inputs)
    monkeypatch.setattr(launch, "_choose_tile", lambda **_: tile)
    got = run_triton(inputs)
    assert_agrees(got, want)
    assert relative_rms(got.output, usual.output) < 1e-6
    for name in TENSORS:
        assert relative_rms(got.gradients[name], usual.gradients[name]) < 1e-6, name


@pytest.mark.parametrize("lanes", [32, 64])
@pytest.mark.parametrize(("channels", "rows"), [(16, 1), (16, 2), (16, 4), (32, 1)])
@pytest.mark.parametrize("size", [1, 15, 16, 17, 64, 80, MAX_HEAD_SIZE])
def test_tiles_are_what_the_kernels_need(size: int, channels: int, rows: int, lanes: int) -> None:
    tile = tile_for(size, channels, rows, lanes)
    assert all(n & (n - 1) == 0 for n in tile), "powers of two"
    assert size <= tile.C * tile.T < max(2 * size, 32)
    assert lanes == tile.A * tile.T
    assert tile.C * tile.T < 32 * tile.W, "beyond, the compiler changes the layout"


def test_same_bits_on_every_run() -> None:
    inputs = draw(Case(B=1, M=20, N=40, D=16, padding="holes", dropout=True, scalars=(2,), off_kinks=False))
    first, second = (run_triton(inputs) for _ in range(2))
    assert torch.equal(first.output, second.output)
    for name, gradient in first.gradients.items():
        assert torch.equal(gradient, second.gradients[name]), name


# Values that single pairs of options do not reach


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_ties_beyond_one_block_of_keys(signed: bool) -> None:
    """Every query is a key's duplicate, and so is every second key; sign(0) = 0 for each of them."""
    inputs = draw(Case(B=1, M=40, N=40, D=16, signed=signed, seed=2))
    inputs.tensors["key"][:, :, 1::2] = inputs.tensors["key"][:, :, ::2]
    inputs.tensors["query"] = inputs.tensors["key"].clone()
    want = judge(inputs)
    assert 0.2 < want.active < 0.8
    got = run_triton(inputs)
    assert relative_rms(got.output, want.output) < 1e-5
    assert relative_rms(got.gradients["query"], want.gradients["query"]) < 1e-5
    assert relative_rms(got.gradients["key"], want.gradients["key"]) < 1e-5


def test_blocks_without_real_keys_and_a_sequence_without_any() -> None:
    """Blocks of 32 keys are skipped where none is real: here the first of one sequence, the last of one, all of one."""
    real = torch.ones(3, 70, dtype=torch.bool)
    real[0, :33], real[1, 31:], real[2] = False, False, False
    inputs = draw(Case(B=3, H=1, M=4, N=70, D=16, seed=1))
    inputs.options["key_padding_mask"] = real
    for name in ("key", "value"):
        inputs.tensors[name].masked_fill_(~real[:, None, :, None], torch.nan)
    got, want = run_triton(inputs), judge(inputs)
    assert relative_rms(got.output, want.output) < 1e-5
    assert not got.output[2].any()
    for name in TENSORS:
        assert relative_rms(got.gradients[name], want.gradients[name]) < 1e-5, name
        assert not got.gradients[name][2].any()


# With what else torch does


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)], ids=["aot_eager", "inductor"]
)
def test_compiled_in_one_graph(compiler: str) -> None:
    inputs = draw(Case(B=1, padding="holes", dropout=True, causal=True, scalars=(2,)))
    want = run_triton(inputs)
    got = run_triton(inputs, operator=torch.compile(inhibitor_attention, fullgraph=True, backend=compiler))
    assert torch.equal(got.output, want.output)
    for name, gradient in want.gradients.items():
        assert torch.equal(got.gradients[name], gradient), name


def test_gradient_checkpointing() -> None:
    """The forward pass runs twice and drops the same keys, drawn by its caller from the random state that is kept."""
    inputs, runs = draw(Case(B=1)), []

    def attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        kept = torch.rand(1, key.shape[2], device=DEVICE) < 0.6
        runs.append(kept)
        return inhibitor_attention(query, key, value, **(options | {"key_dropout_mask": kept}))

    torch.manual_seed(1)
    want = run_triton(inputs, operator=attention)
    torch.manual_seed(1)
    got = run_triton(inputs, operator=partial(checkpoint, attention, use_reentrant=False))
    assert len(runs) == 3
    assert not runs[0].all()
    assert all(torch.equal(kept, runs[0]) for kept in runs)
    assert torch.equal(got.output, want.output)
    for name, gradient in want.gradients.items():
        assert torch.equal(got.gradients[name], gradient), name


def test_autocast() -> None:
    """Projections give bfloat16, the scalars stay float32; nothing is cast but what a caller without autocast would."""
    inputs = draw(Case(B=1, H=2, M=9, N=9, D=16))
    scalars = {name: tensor.requires_grad_() for name, tensor in on_device(inputs.tensors).items() if name in SCALARS}
    hidden, weight = torch.randn(1, 9, 32, device=DEVICE), torch.randn(3, 32, 32, device=DEVICE) / 4
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        heads = {
            name: torch.nn.functional.linear(hidden, w).view(1, 9, 2, 16).transpose(1, 2).requires_grad_()
            for name, w in zip(TENSORS, weight, strict=True)
        }
        output = inhibitor_attention(**heads, **scalars, backend="triton")
    gradients = torch.autograd.grad(output.float().square().sum(), [*heads.values(), *scalars.values()])
    assert {tensor.dtype for tensor in (*heads.values(), output, *gradients[:3])} == {torch.bfloat16}
    assert {gradient.dtype for gradient in gradients[3:]} == {torch.float32}

    outside = inhibitor_attention(**heads, **scalars, backend="triton")
    assert torch.equal(output, outside)
    again = torch.autograd.grad(outside.float().square().sum(), [*heads.values(), *scalars.values()])
    assert all(torch.equal(gradient, other) for gradient, other in zip(gradients, again, strict=True))


# Refusals


def arguments(**changed: Tensor) -> dict[str, Any]:
    """Two sequences of two heads: 3 queries, 5 keys, head size 4."""
    usual = {"query": torch.randn(2, 2, 3, 4), "key": torch.randn(2, 2, 5, 4), "value": torch.randn(2, 2, 5, 4)}
    return on_device(usual | changed) | {"backend": "triton"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {name: torch.zeros(2, 2, 3, MAX_HEAD_SIZE + 1) for name in TENSORS},
            "backend='triton' cannot be used here: Triton takes head sizes up to 128, query has 129.",
        ),
        (
            {name: torch.zeros(2, 2, 3, 4, dtype=torch.float64) for name in TENSORS},
            "backend='triton' cannot be used here: Triton takes float32, bfloat16 and float16, query is torch.float64.",
        ),
        ({"key_padding_mask": torch.ones(2, 5)}, "key_padding_mask must be a bool tensor of shape (batch, keys) = (2, 5)"),
        (
            {"key_dropout_mask": torch.ones(2, 3) > 0},
            "key_dropout_mask must be a bool tensor of shape (batch, keys) = (2, 5)",
        ),
        ({"value": torch.zeros(2, 2, 6, 4)}, "key and value must have the same shape, got (2, 2, 5, 4) and (2, 2, 6, 4)."),
        ({"query": torch.zeros(2, 3, 3, 4)}, "query and key must agree in batch, heads and head size"),
    ],
    ids=["head-size", "float64", "mask-dtype", "mask-shape", "value-shape", "heads"],
)
def test_refused_before_anything_is_launched(
    changed: dict[str, Tensor], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_launch_forward", lambda *_: pytest.fail("a kernel was launched"))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        inhibitor_attention(**arguments(**changed))
    assert "\n" not in str(caught.value)


def test_rows_beyond_32_bits_are_brought_together() -> None:
    """Shapes alone: the memory of such tensors would be gigabytes."""
    apart = torch.empty_strided((2, 2, 3, 4), (8, 4, 2**30, 1), dtype=torch.float16, device="meta")
    assert launch._within_reach("key", apart).is_contiguous()
    near = torch.empty_strided((2**16, 2, 3, 4), (2**20, 4, 8, 1), dtype=torch.float16, device="meta")
    assert launch._within_reach("key", near) is near
    mask = torch.empty_strided((2, 3), (1, 2**31), dtype=torch.bool, device="meta")
    assert launch._within_reach("key_padding_mask", mask).is_contiguous()
    with pytest.raises(ValueError, match=r"key of shape \(1, 8, 8388608, 32\) is too long for the Triton kernels"):
        launch._within_reach("key", torch.empty(1, 8, 2**23, 32, device="meta"))
