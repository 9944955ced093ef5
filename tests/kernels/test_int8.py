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


def form_options(center: str | None, inhibition: str) -> dict:
    """The operator's options for a center, None for none, and for "threshold", "unsigned" or "gate"."""
    return {
        **{"centered": center is not None, "center": center or "mean"},
        **{"signed": inhibition != "unsigned", "inhibition": "gate" if inhibition == "gate" else "threshold"},
    }


# The definition, in scalars

F = np.float32


def nearest(x: F) -> int:
    return round(float(x))  # ties to even


def loop_head(q, k, v, alpha: F, beta: F, gamma: F, delta: F | None, center: str | None, inhibition: str) -> np.ndarray:
    """One head without masks: float32 numbers up to the whole ones, Python's integers from there on."""
    gate = inhibition == "gate"
    v = np.maximum(v, F(0)) if inhibition == "unsigned" else v
    reach = np.abs(v).max()
    t = F(1) if reach < 2.0**-100 else reach * F(1 / 255)
    u = t / F(2) if gate else t
    spread = (k.max(0) - k.min(0)).max()
    unit = gamma * F(k.shape[1] ** -0.5) / u
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
        if center == "mean":
            baseline = F(sum(p)) / F(len(p))
        elif center == "least":
            fine = [[nearest(min(max((x - low) * rate, F(0)), F(255)) * F(64)) for x, low in zip(r, k.min(0), strict=True)]
                    for r in (q[i], k[p.index(min(p))])]  # fmt: skip
            baseline = F(sum(abs(a - b) for a, b in zip(*fine, strict=True))) / F(64) + F(sum(q8))
        else:
            baseline = F(sum(q8) - sum(abs(a - b) for a, b in zip(row, q8, strict=True)))
        m = nearest((baseline - alpha / u / c) * F(2**h))
        whole = [2**h * x - m for x in p]
        z = [max(-255 if gate else 0, min(255, (max(-32768, min(32767, x)) * mu + 2**14) >> 15)) for x in whole]
        scale = beta * u if delta is None else beta * u / opened(whole, delta * (c * u / F(2**h)), c, gate)
        for channel in range(q.shape[1]):
            sums = 0
            for v8, shift in zip(values, z, strict=True):
                passed = max(0, abs(v8[channel]) - shift)
                passed = min(passed, 2 * abs(v8[channel])) if gate else passed
                sums += passed if v8[channel] > 0 else -passed
            output[i, channel] = scale * F(sums)
    return output


def opened(distances: list[int], kappa: F, c: F, gate: bool) -> F:
    """What the sum of a row is divided by."""
    start = F(0.5) if gate else F(1)
    ramp = nearest(min(abs(start / kappa), F(2**30)))
    total = 0
    for x in distances:
        if gate:
            share = max(-ramp, min(ramp, x)) * (1 if kappa > 0 else -1)
        else:
            inhibits = max(0, x if c > 0 else -x)
            share = min(ramp, inhibits) if kappa * c > 0 else -inhibits
        total += ramp - share
    return F(total) * (start / F(ramp)) + F(1e-3)


SCALARS = [(0.5, 1.0, 1.0), (-1.0, 0.7, 2.0), (2.0, -1.3, -0.5), (0.3, 1.0, 0.0), (0.0, 1.0, 40.0), (-2.5, 1.0, 3e-4)]


@pytest.mark.parametrize("scalars", SCALARS, ids=lambda s: f"alpha{s[0]:g}-beta{s[1]:g}-gamma{s[2]:g}")
@pytest.mark.parametrize("inhibition", ["threshold", "unsigned", "gate"])
@pytest.mark.parametrize("center", ["mean", "least", None], ids=str)
def test_it_is_the_loop(center: str | None, inhibition: str, scalars: tuple[float, float, float]) -> None:
    query, key, value = inputs(1, 1, 11, 6, queries=7)
    query = query * 2  # some of them outside of the grid
    alpha, *others = scalars
    # About where the scores are in the middle; a gate reaches half as far.
    alpha = alpha * (0.5 if inhibition == "gate" else 1.0) - {"mean": 0.0, "least": 1.3, None: 4.3}[center] * scalars[2]
    heads = [x[0, 0].numpy() for x in (query, key, value)]
    for delta in (None, 0.6, -0.3, 1e-7):
        numbers = dict(zip(("alpha", "beta", "gamma", "delta"), (alpha, *others, delta), strict=True))
        tensors = {name: None if number is None else torch.tensor([number]) for name, number in numbers.items()}
        got = int8_attention(query, key, value, **tensors, **form_options(center, inhibition))
        want = loop_head(*heads, *(None if x is None else F(x) for x in numbers.values()), center, inhibition)
        assert got.abs().max() > 0
        assert torch.equal(got[0, 0], torch.from_numpy(want)), delta


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


@pytest.mark.parametrize("shape", [(1, 3, 128, 64), (2, 3, 64, 32), (2, 3, 17, 5)], ids=str)
def test_error_of_forms_beyond_the_paper(shape: tuple[int, ...]) -> None:
    """Beside that of the paper's form where about as much passes: scores are rounded alike in all of them."""
    query, key, value = inputs(*shape)

    def error(**options) -> float:
        want = inhibitor_attention(*(x.double() for x in (query, key, value)), backend="torch", **options)
        return relative_rms(int8_attention(query, key, value, **options), want)

    published = error(alpha=2.0)
    assert error(inhibition="gate", alpha=0.0) <= 1.1 * error()
    assert error(delta=0.7) <= 1.1 * error()
    for options in ({"alpha": 0.0}, {"alpha": -0.5, "inhibition": "gate"}):
        for delta in (None, 1.0):
            assert error(center="least", delta=delta, **options) <= 1.5 * published


@pytest.mark.parametrize(
    "case",
    [
        Case(
            B=2, H=2, M=20, N=24, D=16, padding="holes", dropout=True, inhibition="gate", delta=0.7, scalars=(2,), alpha=0.1
        ),
        Case(
            B=2, H=2, M=9, N=24, D=16, causal=True, padding="left", inhibition="gate", center="least", delta=0.5, alpha=-0.7
        ),
        Case(B=2, H=2, M=20, N=24, D=16, gamma=-0.8, alpha=1.0, delta=-0.4, beta=-2.0),
        Case(B=2, H=2, M=20, N=24, D=16, gamma=-0.8, alpha=1.0, center="least", delta=0.3, inhibition="gate"),
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


@pytest.mark.parametrize("center", ["mean", "least"])
def test_a_gate_that_is_open_and_one_that_is_shut(center: str) -> None:
    """However far Z is from every value: all passes, divided by the number of keys, or nothing."""
    query, key, value = inputs(1, 1, 40, 8)
    for far in (20.0, 1e3, 1e20):
        options = {"inhibition": "gate", "center": center, "delta": 1.0}
        whole = int8_attention(query, key, value, alpha=-far, **options)
        assert relative_rms(whole, value.mean(-2, keepdim=True).expand_as(value)) <= 0.02
        assert torch.equal(int8_attention(query, key, value, alpha=far, **options), torch.zeros_like(query))


def test_without_a_slope_the_divisor_counts_keys() -> None:
    query, key, value = inputs(1, 2, 40, 8)
    plain, divided = (int8_attention(query, key, value, delta=delta) for delta in (None, 0.0))
    assert relative_rms(divided * 40.001, plain) <= 1e-3


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
