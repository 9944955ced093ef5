"""The definition of int8 inhibitor attention, against a loop over Python integers and against the exact operator."""

import numpy as np
import pytest
import torch
from torch import Tensor

from inhibidistilbert import inhibitor_attention
from inhibidistilbert.testing.reference import NOT_FINITE, SPOILT, Case, draw, judge, relative_rms, spoilt

pytestmark = pytest.mark.portable


def int8_attention(query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
    return inhibitor_attention(query, key, value, quantized=True, backend="torch", **options)


def inputs(*shape: int, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Standard normal query, key and value of `shape` `(B, H, N, d)`."""
    batch, heads, keys, size = shape
    return torch.randn(batch, heads, queries or keys, size), torch.randn(shape), torch.randn(shape)


# The definition, in scalars

F = np.float32


def nearest(x: F) -> int:
    return round(float(x))  # ties to even


def loop_head(q, k, v, alpha: F, beta: F, gamma: F, centered: bool, signed: bool) -> np.ndarray:
    """One head without masks: float32 numbers up to the whole ones, Python's integers from there on."""
    v = v if signed else np.maximum(v, F(0))
    reach = np.abs(v).max()
    t = F(1) if reach < 2.0**-100 else reach * F(1 / 255)
    spread = (k.max(0) - k.min(0)).max()
    unit = gamma * F(k.shape[1] ** -0.5) / t
    finest, widest = abs(unit) * F(32), F(1) / spread * F(255)
    rate = min(finest, widest)
    c = F(-1 / 32 if gamma < 0 else 1 / 32) if finest < widest else unit / rate
    h = max(n for n in range(6) if n == 0 or abs(c) * 32 >= 2**n)
    mu = max(-32767, min(32767, nearest(c * F(32768) / F(2**h))))

    steps = [[nearest((x - low) * rate) for x, low in zip(row, k.min(0), strict=True)] for row in q]
    keys = [[nearest((x - low) * rate) for x, low in zip(row, k.min(0), strict=True)] for row in k]
    values = [[nearest(x * (F(1) / t)) for x in row] for row in v]
    output = np.zeros_like(q)
    for i, row in enumerate(steps):
        q8 = [max(0, min(255, x)) for x in row]
        p = [sum(2 * max(a, b) - b for a, b in zip(q8, k8, strict=True)) for k8 in keys]
        if centered:
            baseline = F(sum(p)) / F(len(p))
        else:
            baseline = F(sum(q8) - sum(abs(a - b) for a, b in zip(row, q8, strict=True)))
        m = nearest((baseline - alpha / t / c) * F(2**h))
        z = [max(0, min(255, (max(-32768, min(32767, 2**h * x - m)) * mu + 2**14) >> 15)) for x in p]
        for channel in range(q.shape[1]):
            sums = 0
            for v8, shift in zip(values, z, strict=True):
                passed = max(0, abs(v8[channel]) - shift)
                sums += passed if v8[channel] > 0 else -passed
            output[i, channel] = beta * t * F(sums)
    return output


SCALARS = [(0.5, 1.0, 1.0), (-1.0, 0.7, 2.0), (2.0, -1.3, -0.5), (0.3, 1.0, 0.0), (0.0, 1.0, 40.0), (-2.5, 1.0, 3e-4)]


@pytest.mark.parametrize("scalars", SCALARS, ids=lambda s: f"alpha{s[0]:g}-beta{s[1]:g}-gamma{s[2]:g}")
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("centered", [True, False], ids=["centered", "uncentered"])
def test_it_is_the_loop(centered: bool, signed: bool, scalars: tuple[float, float, float]) -> None:
    query, key, value = inputs(1, 1, 11, 6, queries=7)
    query = query * 2  # some of them outside of the grid
    if not centered:
        scalars = (scalars[0] - 4.3 * scalars[2], *scalars[1:])  # about the mean of the scores
    alpha, beta, gamma = (torch.tensor([x]) for x in scalars)
    options = {"alpha": alpha, "beta": beta, "gamma": gamma, "centered": centered, "signed": signed}
    got = int8_attention(query, key, value, **options)
    heads = [x[0, 0].numpy() for x in (query, key, value)]
    want = loop_head(*heads, *(F(x) for x in scalars), centered, signed)
    assert got.abs().max() > 0
    assert torch.equal(got[0, 0], torch.from_numpy(want))


# How far it is from the exact operator


@pytest.mark.parametrize("shape", [(1, 12, 128, 64), (2, 2, 512, 64), (4, 4, 64, 32), (2, 3, 17, 5)], ids=str)
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("centered", [True, False], ids=["centered", "uncentered"])
def test_error_on_random_input(centered: bool, signed: bool, shape: tuple[int, ...]) -> None:
    query, key, value = inputs(*shape)
    # Without centring the scores are about 1.13 sqrt(d).
    options = {"centered": centered, "signed": signed, "alpha": 0.5 if centered else -1.1 * shape[-1] ** 0.5}
    want = inhibitor_attention(query, key, value, backend="torch", **options)
    assert relative_rms(int8_attention(query, key, value, **options), want) <= 0.02


@pytest.mark.parametrize(
    "case",
    [
        Case(B=2, H=3, M=20, N=24, D=16, padding="holes", dropout=True, scalars=(3,)),
        Case(B=2, H=2, M=9, N=24, D=16, causal=True, padding="left"),
        Case(B=2, H=2, M=20, N=24, D=16, attn_mask=(2, 1, 20, 24)),
        Case(B=2, H=2, M=20, N=24, D=16, offset=100.0),
        Case(B=2, H=2, M=20, N=24, D=16, gamma=-0.8, alpha=1.0, beta=-2.0),
        Case(B=2, H=2, M=20, N=24, D=16, gamma=0.0),
        Case(B=2, H=2, M=20, N=24, D=16, centered=False, alpha=-4.0, signed=False),
    ],
    ids=str,
)
def test_error_with_every_option(case: Case) -> None:
    drawn = draw(case)
    want = judge(drawn)
    assert 0.2 <= want.active <= 0.8
    got = int8_attention(**drawn.tensors, **drawn.options)
    assert relative_rms(got, want.output) <= 0.02


def test_error_of_queries_far_from_all_keys() -> None:
    """What lies outside of the keys' grid is saturated, and what that takes off a distance is added again."""
    query, key, value = inputs(1, 2, 32, 16)
    query[:, :, ::2] += 30 * torch.sign(torch.randn(1, 2, 16, 16))
    for centered, alpha in ((True, 0.5), (False, -120.0)):
        options = {"centered": centered, "alpha": alpha}
        want = inhibitor_attention(query, key, value, backend="torch", **options)
        assert want[:, :, ::2].abs().mean() > 0.1
        assert relative_rms(int8_attention(query, key, value, **options)[:, :, ::2], want[:, :, ::2]) <= 0.02


@pytest.mark.parametrize("beyond", [2.0, 1e3, 1e20, 1e30])
def test_values_without_a_shift_keep_their_sum(beyond: float) -> None:
    """Where Z is 0 for every key nothing is inhibited; where it is far above the largest value everything is."""
    query, key, value = inputs(1, 1, 40, 8)
    far = beyond * value.abs().max().item() * 10
    whole = int8_attention(query, key, value, alpha=-far)
    assert relative_rms(whole, value.sum(-2, keepdim=True).expand_as(value)) <= 0.02
    assert torch.equal(int8_attention(query, key, value, alpha=far), torch.zeros_like(query))


@pytest.mark.parametrize("gamma", [1.0, -1.0])
def test_scores_beyond_every_value(gamma: float) -> None:
    """Keys so far apart that a step of their grid is more than the largest value: each key passes whole or not at all."""
    query, key, value = inputs(1, 1, 40, 8)
    options = {"gamma": gamma * 1e6, "alpha": 0.0}
    want = inhibitor_attention(query, key, value, backend="torch", **options)
    assert relative_rms(int8_attention(query, key, value, **options), want) <= 0.2


@pytest.mark.parametrize("centered", [True, False])
def test_keys_that_are_all_the_same(centered: bool) -> None:
    query, key, value = inputs(1, 2, 20, 8)
    key = key[:, :, :1].expand_as(key)
    options = {"centered": centered, "alpha": 0.5 if centered else -2.0}
    want = inhibitor_attention(query, key, value, backend="torch", **options)
    assert relative_rms(int8_attention(query, key, value, **options), want) <= 0.02


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-31, 1e-20, 1e20, 1e30])
def test_scale_of_everything(scale: float) -> None:
    """The operator is homogeneous; what is too small for a grid becomes 0."""
    query, key, value = inputs(1, 1, 16, 8)
    got = int8_attention(*(x * scale for x in (query, key, value)), alpha=0.5 * scale)
    if scale < 2.0**-100:
        assert torch.equal(got, torch.zeros_like(got))
    else:
        assert relative_rms(got.double() / scale, int8_attention(query, key, value)) <= 0.01


# What a result may depend on


@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
def test_padding_changes_nothing(causal: bool) -> None:
    """Neither what stands at padded positions, NaN included, nor how many there are, nor the other sequences."""
    query, key, value = inputs(1, 2, 12, 8)
    real = torch.tensor([True, False, True, True, False, True, True, True, False, True, True, True])
    alone = int8_attention(query, key[:, :, real], value[:, :, real])
    padded = [x.masked_fill(~real[:, None], torch.nan) for x in (key, value)]
    assert torch.equal(int8_attention(query, *padded, key_padding_mask=real[None]), alone)

    other = [torch.randn(1, 2, 20, 8) * 100 for _ in range(3)]
    tail = [torch.cat([x, torch.full((1, 2, 8, 8), torch.nan)], 2) for x in (query, key, value)]
    batch = [torch.cat([x, y]) for x, y in zip(tail, other, strict=True)]
    mask = torch.arange(20) < torch.tensor([[12], [20]])
    both = int8_attention(*batch, key_padding_mask=mask)[:1, :, :12]
    assert torch.equal(both, int8_attention(query, key, value))


def test_queries_do_not_know_each_other() -> None:
    query, key, value = inputs(1, 2, 12, 8)
    with_another = torch.cat([query, 1e4 * torch.randn(1, 2, 3, 8)], 2)
    for centered in (True, False):
        alone = int8_attention(query, key, value, centered=centered)
        assert torch.equal(int8_attention(with_another, key, value, centered=centered)[:, :, :12], alone)


def test_causal_is_the_mask() -> None:
    query, key, value = inputs(2, 2, 12, 8, queries=15)
    real = torch.rand(2, 12) < 0.7
    past = torch.ones(15, 12, dtype=torch.bool).tril(12 - 15)
    got = int8_attention(query, key, value, key_padding_mask=real, causal=True)
    assert torch.equal(got, int8_attention(query, key, value, key_padding_mask=real, attn_mask=past[None, None]))
    assert torch.equal(got[:, :, :3], torch.zeros(2, 2, 3, 8)), "the first three queries see no key"


def test_scalars_of_each_head() -> None:
    query, key, value = inputs(2, 3, 12, 8)
    numbers = {"alpha": [0.5, -0.5, 1.0], "beta": [1.0, -2.0, 0.0], "gamma": [-1.0, 0.0, 1.0]}
    scalars = {name: torch.tensor(of_heads) for name, of_heads in numbers.items()}
    got = int8_attention(query, key, value, **scalars)
    for head in range(3):
        alone = {name: scalar[head] for name, scalar in scalars.items()}
        operands = [x[:, head, None] for x in (query, key, value)]
        assert torch.equal(got[:, head, None], int8_attention(*operands, **alone))


def test_numbers_that_are_not_finite() -> None:
    """They spoil their head, or their row, and nothing else."""
    for bad in (torch.nan, torch.inf, -torch.inf):
        for spoiled in ("query", "key", "value"):
            tensors = dict(zip(("query", "key", "value"), inputs(1, 2, 12, 8), strict=True))
            fine = int8_attention(**tensors)
            tensors[spoiled][0, 1, 3, 5] = bad
            got = int8_attention(**tensors)
            where = (0, 1, 3) if spoiled == "query" else (0, 1)
            assert got[where].isnan().all(), f"{bad} in {spoiled}"
            got[where] = fine[where]
            assert torch.equal(got, fine)


@pytest.mark.parametrize("centered", [True, False], ids=["centered", "uncentered"])
@pytest.mark.parametrize("place", [place for place in SPOILT if place != "gradient"])
@pytest.mark.parametrize(
    "masks", [{"causal": True, "padding": "holes"}, {"attn_mask": (2, 2, 12, 12)}], ids=["causal", "mask"]
)
def test_rows_that_are_not_finite(masks: dict, place: str, centered: bool) -> None:
    """They show wherever the exact form shows any, and whoever does not see what spoils them has its result."""
    for number in NOT_FINITE:
        case = Case(M=12, N=12, D=8, dropout=True, centered=centered, scalars=(2,), **masks)
        drawn, want = spoilt(case, number, place)
        got = int8_attention(**drawn.tensors, **drawn.options)
        spoils = ~got.isfinite().all(-1)
        assert spoils[~want.output.isfinite().all(-1)].all()
        clean = ~spoils
        if place == "nothing":
            assert clean.all()
        # Another head, another sequence, and for a key or value that comes late whoever asks earlier.
        assert clean[:, 1].all()
        if place in ("last key", "last value", "query"):
            assert clean[-1, 0].any()
        assert relative_rms(got[clean], want.output[clean]) <= 0.03


# The public call


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    tensors = [x.to(dtype) for x in inputs(1, 2, 12, 8)]
    got = int8_attention(*tensors)
    assert got.dtype == dtype
    assert torch.equal(got, int8_attention(*(x.float() for x in tensors)).to(dtype))


@pytest.mark.parametrize("shape", [(0, 2, 5, 4), (2, 0, 5, 4), (2, 2, 0, 4), (2, 2, 5, 0)], ids=str)
@pytest.mark.parametrize("queries", [0, 3])
def test_empty(shape: tuple[int, ...], queries: int) -> None:
    query = torch.randn(*shape[:2], queries, shape[3])
    got = int8_attention(query, torch.randn(shape), torch.randn(shape))
    assert torch.equal(got, torch.zeros_like(query))


def test_a_sequence_of_padding_alone() -> None:
    mask = torch.tensor([[True] * 5, [False] * 5])
    query, key, value = inputs(2, 2, 5, 4)
    got = int8_attention(query, key, value, key_padding_mask=mask)
    assert torch.equal(got[1], torch.zeros(2, 5, 4))
    assert torch.equal(got[:1], int8_attention(query[:1], key[:1], value[:1]))


@pytest.mark.parametrize("name", ["query", "key", "value", "alpha", "beta", "gamma"])
def test_gradients_are_refused(name: str) -> None:
    arguments = dict(zip(("query", "key", "value"), inputs(1, 2, 5, 4), strict=True))
    arguments |= {scalar: torch.ones(1) for scalar in ("alpha", "beta", "gamma")}
    arguments[name].requires_grad_()
    with pytest.raises(ValueError, match=f"quantized=True has no gradient, and {name} requires one; call it under"):
        inhibitor_attention(**arguments, quantized=True)
    with torch.no_grad():
        assert not inhibitor_attention(**arguments, quantized=True).requires_grad
