"""The judge of the operator's tests, independent of the kernels.

- `loop_attention`: a triple loop over Python floats (float64), with the gradients written out.
- `cdist_attention`: a second opinion in float64, differentiated by autograd; it only checks the loop.
- `Case` and `draw`: inputs with 20 to 80 % of the terms active, away from every kink where asked.
- `run`, `relative_rms`, `assert_only_rounded`: one call of the operator, and how far it is from the judge.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..kernels.attention import BACKENDS as TABLE
from ..kernels.attention import inhibitor_attention

# The forms in plain torch: any dtype, float64 too, any mask, and the scores where they are asked for.
PLAIN_BACKENDS = tuple(name for name, backend in TABLE.items() if backend.refusal is None)
# The compiled ones, where this machine can run them (Triton's interpreter counts): half types and float32.
_SMALL = torch.zeros(1, 1, 1, 1)
COMPILED_BACKENDS = tuple(name for name, each in TABLE.items() if each.refusal is not None and each.refusal(_SMALL) is None)
BACKENDS = PLAIN_BACKENDS + COMPILED_BACKENDS
# Those that compute forms beyond the paper themselves.
BEYOND_BACKENDS = PLAIN_BACKENDS + tuple(name for name in COMPILED_BACKENDS if TABLE[name].beyond)

FORWARD_TOLERANCE = 1e-5
GRADIENT_TOLERANCES = {"query": 1e-5, "key": 1e-5, "value": 1e-5, "alpha": 3e-4, "beta": 3e-4, "gamma": 3e-4}
_TOLERANCES = GRADIENT_TOLERANCES | {"delta": 3e-4}

_KINK_MARGIN = 1e-4
_DTYPE_NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Case:
    """One drawing of inputs. Shapes: queries `(B, H, M, D)`, keys and values `(B, H, N, D)`.

    `attn_mask` is the mask's shape; `scalars` the shape of alpha, beta and gamma, its last number that of delta; `offset` is
    added to queries and keys;
    with `ties` the first query of each head is the first key; without `off_kinks` the inputs are whatever comes.
    """

    B: int = 2
    H: int = 2
    M: int = 7
    N: int = 9
    D: int = 5
    dtype: torch.dtype = torch.float32
    signed: bool = True
    centered: bool = True
    causal: bool = False
    padding: str | None = None
    dropout: bool = False
    attn_mask: tuple[int, int, int, int] | None = None
    alpha: float = 0.5
    beta: float = 1.3
    gamma: float = 0.8
    delta: float | None = None
    center: str = "mean"
    inhibition: str = "threshold"
    scalars: tuple[int, ...] = (1,)
    offset: float = 0.0
    ties: bool = False
    off_kinks: bool = True
    seed: int = 0

    def __str__(self) -> str:
        words = [f"B{self.B}", f"M{self.M}", f"N{self.N}", f"H{self.H}", f"D{self.D}", _DTYPE_NAMES[self.dtype]]
        words += ["signed" if self.signed else "unsigned", "centered" if self.centered else "uncentered"]
        words += [name for name in ("causal", "dropout", "ties") if getattr(self, name)]
        if self.padding is not None:
            words.append(self.padding)
        if self.attn_mask is not None:
            words.append("mask" + "x".join(map(str, self.attn_mask)))
        if self.center != "mean":
            words.append(self.center)
        if self.inhibition != "threshold":
            words.append(self.inhibition)
        if len(self.scalars) == 2:
            words.append(f"radii{self.scalars[0]}")
        for name, usual in (("alpha", 0.5), ("beta", 1.3), ("gamma", 0.8), ("delta", None), ("offset", 0.0)):
            if getattr(self, name) != usual:
                words.append(f"{name}{getattr(self, name):g}")
        return "-".join(words)


@dataclass
class Inputs:
    """What one call takes: the differentiable tensors by name, the options, and the incoming gradients."""

    tensors: dict[str, Tensor]
    options: dict[str, Any]
    grad_output: Tensor
    grad_scores: Tensor


@dataclass
class Result:
    """Output, scores Z, and the gradient of every differentiable input by name; `active`: the share of terms that pass."""

    output: Tensor
    scores: Tensor | None
    gradients: dict[str, Tensor] = field(default_factory=dict)
    active: float = math.nan


def relative_rms(got: Tensor, want: Tensor) -> float:
    """Root mean square of the error over that of `want`; absolute where `want` is all zero.

    Over the numbers that are finite in `want`. NaN where one is not finite in `got`, or where others are not the same.
    """
    assert got.shape == want.shape, f"shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    if want.numel() == 0:
        return 0.0
    got, want = got.double(), want.double()
    if not want.isfinite().all():
        got, want = got.where(~same_infinite(got, want), 0), want.where(want.isfinite(), 0)
    error, size = (got - want).square().mean().sqrt().item(), want.square().mean().sqrt().item()
    return error / size if size else error


def same_infinite(got: Tensor, want: Tensor) -> Tensor:
    """Where both are NaN, or both infinity of the same sign."""
    return (got.isnan() & want.isnan()) | (want.isinf() & (got == want))


def assert_only_rounded(got: Tensor, want: Tensor) -> None:
    """`got` is `want`, computed in float32 and rounded once to the dtype of `got`."""
    limits = torch.finfo(got.dtype)
    if not want.isfinite().all():
        got, want = got.where(~same_infinite(got, want), 0), want.where(want.isfinite(), 0)
    size = want.square().mean().sqrt().item()
    bound = want.abs() * limits.eps / 2 + limits.smallest_normal * limits.eps / 2 + 1e-5 * size
    excess = ((got.double() - want).abs() - bound).max().item()
    assert excess <= 0, f"{excess} beyond one rounding to {got.dtype}"


def assert_agrees(got: Result, want: Result) -> None:
    """`got` is the judge's result to the tolerances of inputs away from the kinks."""
    errors = {"output": relative_rms(got.output, want.output)}
    if got.scores is not None:
        assert want.scores is not None
        errors["scores"] = relative_rms(got.scores, want.scores)
    errors |= {name: relative_rms(got.gradients[name], want.gradients[name]) for name in want.gradients}
    wrong = {name: error for name, error in errors.items() if not error < _TOLERANCES.get(name, FORWARD_TOLERANCE)}
    assert not wrong, f"relative RMS error beyond the tolerance: {wrong}"


def run(inputs: Inputs, backend: str, return_scores: bool = False) -> Result:
    """Output, and every gradient, of one call of the operator."""
    leaves: dict[str, Any] = {name: tensor.detach().requires_grad_() for name, tensor in inputs.tensors.items()}
    result: Any = inhibitor_attention(**leaves, **inputs.options, return_scores=return_scores, backend=backend)
    output, scores = result if return_scores else (result, None)
    outputs, incoming = [output], [inputs.grad_output.to(output.dtype)]
    if scores is not None:
        outputs.append(scores)
        incoming.append(inputs.grad_scores.to(scores.dtype))
    gradients = torch.autograd.grad(outputs, list(leaves.values()), incoming)
    return Result(output.detach(), None if scores is None else scores.detach(), dict(zip(leaves, gradients, strict=True)))


# The triple loop


def _relu(x: float) -> float:
    return 0.0 if x <= 0 else x


def _through_relu(x: float, gradient: float) -> float:
    """As torch's relu has it: at NaN the gradient passes."""
    return 0.0 if x <= 0 else gradient


def _sign(x: float) -> int:
    """As torch's sign: 0 for NaN."""
    return (x > 0) - (x < 0)


def _passed(v: float, z: float, signed: bool, gate: bool) -> tuple[float, float, float]:
    """What of v passes under z, and the derivatives of that by v and by z."""
    sign = _sign(v) if signed else 1
    if not gate:
        # sign(v) relu(|v| - z), and both factors take part in the gradient.
        excess = abs(v) - z if signed else v - z
        passed = _relu(_relu(v) - z) - _relu(_relu(-v) - z) if signed else _relu(excess)
        through = _through_relu(excess, 1.0)
        return passed, through * sign * sign, -through * sign
    excess = abs(v) / 2 - z
    if excess <= 0:
        return 0.0, 0.0, 0.0
    return (v, 1.0, 0.0) if excess >= abs(v) else (v / 2 - sign * z, 0.5, -float(sign))


def _opened(z: float, delta: float, gate: bool) -> tuple[float, float]:
    """How much of a constant passes under z, and the derivative of that by delta z."""
    ramp = (0.5 if gate else 1.0) - delta * z
    if gate:
        return min(1.0, max(0.0, ramp)) if ramp == ramp else ramp, -1.0 if 0 <= ramp <= 1 else 0.0
    return _relu(ramp), _through_relu(ramp, -1.0)


class _Head:
    """One head of one sequence: nested lists in, nested lists out; alpha, beta and gamma are lists, one for each radius."""

    def __init__(self, q, k, v, alpha, beta, gamma, delta, center, signed, gate):
        self.q, self.k, self.v = q, k, v
        self.alpha, self.beta, self.gamma, self.delta = alpha, beta, gamma, delta
        self.center, self.signed, self.gate = center, signed, gate
        self.size = len(q[0]) if q else len(k[0]) if k else 0
        self.output = [[0.0] * self.size for _ in q]
        self.scores = [[0.0] * len(k) for _ in q]
        self.dq, self.dk, self.dv = ([[0.0] * self.size for _ in rows] for rows in (q, k, k))
        self.dalpha, self.dbeta, self.dgamma = ([0.0] * len(alpha) for _ in range(3))
        self.ddelta = 0.0
        self.terms = self.active = 0

    def row(self, i: int, seen: list[int], kept: list[bool], g: list[float], gz: list[float]) -> None:
        """Query i, which sees the keys `seen`, with the gradients g of its output and gz of its scores."""
        root = 1 / math.sqrt(self.size) if self.size else 0.0
        distance = {j: sum(abs(a - b) for a, b in zip(self.q[i], self.k[j], strict=True)) for j in seen}
        # The first of several; NaN is less than any.
        nearest = min(seen, key=lambda j: (not math.isnan(distance[j]), distance[j])) if seen else None
        center = 0.0
        if nearest is not None and self.center is not None:
            center = sum(distance.values()) / len(seen) if self.center == "mean" else distance[nearest]
        shifts: list[dict[int, float]] = []
        sums, shares, total, opened = [], [], [0.0] * self.size, 0.0
        for r, (alpha, beta, gamma) in enumerate(zip(self.alpha, self.beta, self.gamma, strict=True)):
            scale = gamma * root
            s = {j: scale * x + alpha - (0.0 if self.center is None else scale * center) for j, x in distance.items()}
            shifts.append(s if self.gate else {j: _relu(x) for j, x in s.items()})
            inhibited = [
                sum(_passed(self.v[j][c], z, self.signed, self.gate)[0] for j, z in shifts[-1].items() if kept[j])
                for c in range(self.size)
            ]
            sums.append(inhibited)
            weight = beta if r else 1.0
            total = [so_far + weight * x for so_far, x in zip(total, inhibited, strict=True)]
            if self.delta is not None:
                shares.append(sum(_opened(z, self.delta, self.gate)[0] for z in shifts[-1].values()))
                opened += abs(weight) * shares[-1]
        for j in seen:
            self.scores[i][j] = shifts[0][j]
        divisor = 1.0 if self.delta is None else opened + 1e-3
        self.output[i] = [self.beta[0] * x / divisor for x in total]
        self.dbeta[0] += sum(a * b for a, b in zip(g, total, strict=True)) / divisor
        d_opened = -sum(a * b for a, b in zip(g, self.output[i], strict=True)) / divisor
        g = [x / divisor for x in g]

        d_distance = dict.fromkeys(seen, 0.0)
        for r, gamma in enumerate(self.gamma):
            scale, ds, weight = gamma * root, {}, self.beta[r] if r else 1.0
            for j, z in shifts[r].items():
                dz = gz[j] if r == 0 else 0.0
                if kept[j]:
                    dz += self._inhibit(j, z, [self.beta[0] * weight * x for x in g])
                if self.delta is not None:
                    slope = _opened(z, self.delta, self.gate)[1]
                    slope = slope * abs(weight) * d_opened if slope else 0.0
                    dz += self.delta * slope
                    self.ddelta += z * slope
                ds[j] = dz if self.gate else _through_relu(z, dz)
            if r:
                self.dbeta[r] += self.beta[0] * sum(a * b for a, b in zip(g, sums[r], strict=True))
                self.dbeta[r] += _sign(weight) * shares[r] * d_opened if shares else 0.0
            self.dalpha[r] += sum(ds.values())
            self.dgamma[r] += root * (sum(ds[j] * x for j, x in distance.items()) - sum(ds.values()) * center)
            for j, x in ds.items():
                d_distance[j] += scale * x - (scale * sum(ds.values()) / len(seen) if self.center == "mean" else 0)
            if self.center == "least" and nearest is not None:
                d_distance[nearest] -= scale * sum(ds.values())
        for j in seen:
            for c, (a, b) in enumerate(zip(self.q[i], self.k[j], strict=True)):
                self.dq[i][c] += d_distance[j] * _sign(a - b)
                self.dk[j][c] -= d_distance[j] * _sign(a - b)

    def _inhibit(self, j: int, z: float, g: list[float]) -> float:
        """Values of key j against z: adds their gradients, and returns that of z."""
        dz = 0.0
        for c, v in enumerate(self.v[j]):
            passed, by_v, by_z = _passed(v, z, self.signed, self.gate)
            # What is taken 0 times does not count, whatever it is.
            self.dv[j][c] += by_v * g[c] if by_v else 0.0
            dz += by_z * g[c] if by_z else 0.0
            self.terms += 1
            self.active += passed != 0
        return dz


def visible_keys(
    query: Tensor,
    key: Tensor,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    causal: bool = False,
    **_: object,
) -> Tensor:
    """`(B, H, M, N)` bool: real, allowed by the mask, and with `causal` not in the future."""
    (batch, heads, queries), keys = query.shape[:3], key.shape[2]
    visible = torch.ones(batch, heads, queries, keys, dtype=torch.bool)
    if key_padding_mask is not None:
        visible &= key_padding_mask[:, None, None]
    if attn_mask is not None:
        visible &= attn_mask
    return visible.tril(keys - queries) if causal else visible


def loop_attention(inputs: Inputs) -> Result:
    """The definition as a triple loop in float64, with the gradients by the explicit formulas.

    At every kink the derivative is 0. Invisible keys are never looked at.
    """
    tensors = {name: tensor.detach().double() for name, tensor in inputs.tensors.items()}
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    batch, heads, _, _ = query.shape
    options = inputs.options
    visible = visible_keys(query, key, **options)
    kept = options.get("key_dropout_mask")
    kept = torch.ones(batch, key.shape[2], dtype=torch.bool) if kept is None else kept
    per_head = [tensors[name].expand(_radii(tensors), heads).T.tolist() for name in ("alpha", "beta", "gamma")]
    delta = tensors["delta"].expand(heads).tolist() if "delta" in tensors else [None] * heads

    done: list[list[_Head]] = []
    for b in range(batch):
        done.append([])
        for h in range(heads):
            nested = (tensor[b, h].tolist() for tensor in (query, key, value))
            head = _Head(*(*nested, *(scalar[h] for scalar in per_head), delta[h], *_form(options)))
            grads = zip(inputs.grad_output[b, h].tolist(), inputs.grad_scores[b, h].tolist(), strict=True)
            for i, (g, gz) in enumerate(grads):
                head.row(i, visible[b, h, i].nonzero().flatten().tolist(), kept[b].tolist(), g, gz)
            done[b].append(head)

    def gathered(name: str, shape: torch.Size) -> Tensor:
        return torch.tensor([[getattr(head, name) for head in row] for row in done], dtype=torch.float64).reshape(shape)

    gradients = {name: gathered(f"d{name[0]}", tensors[name].shape) for name in ("query", "key", "value")}
    for name in tensors.keys() & {"alpha", "beta", "gamma", "delta"}:
        gradient = torch.tensor([[getattr(head, f"d{name}") for head in row] for row in done], dtype=torch.float64).sum(0)
        gradients[name] = (gradient.T if gradient.ndim == 2 else gradient).sum_to_size(tensors[name].shape)
    terms = sum(head.terms for row in done for head in row)
    active = sum(head.active for row in done for head in row) / terms if terms else math.nan
    return Result(gathered("output", query.shape), gathered("scores", visible.shape), gradients, active)


def _radii(tensors: dict[str, Tensor]) -> int:
    return max(len(tensors[name]) if tensors[name].ndim == 2 else 1 for name in ("alpha", "beta", "gamma"))


def _form(options: dict[str, Any]) -> tuple[str | None, bool, bool]:
    """The center, None where nothing is centred, whether it is signed, and whether it is a gate."""
    center = options.get("center", "mean") if options.get("centered", True) else None
    return center, options.get("signed", True), options.get("inhibition") == "gate"


# The second opinion


def cdist_attention(inputs: Inputs) -> Result:
    """The closed form of the sum, sum relu(v - Z) = (sum v - sum Z + sum |v - Z|) / 2, one query at a time, in float64.

    A gate is a difference of two such sums. The gradients come from autograd. Away from the kinks only: at v = Z its
    derivative is one half.
    """
    leaves = {name: tensor.detach().double().requires_grad_() for name, tensor in inputs.tensors.items()}
    query, key, value = (leaves[name] for name in ("query", "key", "value"))
    options = inputs.options
    shape = (_radii(leaves), query.shape[1])
    alpha, beta, gamma = (leaves[name].expand(shape) for name in ("alpha", "beta", "gamma"))
    center, signed, gate = _form(options)
    visible = visible_keys(query, key, **options)
    kept = options.get("key_dropout_mask")
    loss = torch.zeros((), dtype=torch.float64)
    output, scores = torch.zeros(query.shape, dtype=torch.float64), torch.zeros(visible.shape, dtype=torch.float64)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).tolist():
        seen = visible[b, h, i]
        if not seen.any():
            continue
        s = torch.cdist(query[b, h, i, None], key[b, h, seen], p=1)[0] / math.sqrt(query.shape[-1])
        s = s - s.mean() if center == "mean" else s - s.min() if center == "least" else s
        v = value[b, h, seen]
        rest = slice(None) if kept is None else kept[b, seen]
        shifts = [gamma[r, h] * s + alpha[r, h] for r in range(shape[0])]
        shifts = shifts if gate else [z.relu() for z in shifts]
        weights = torch.cat((torch.ones(1, dtype=torch.float64), beta[1:, h]))
        passed = [_closed_form(v[rest], z[rest], signed, gate) for z in shifts]
        row = beta[0, h] * (weights[:, None] * torch.stack(passed)).sum(0)
        if "delta" in leaves:
            delta = leaves["delta"].expand(query.shape[1])[h]
            open_shares = [(0.5 - delta * z).clamp(0, 1) if gate else (1 - delta * z).relu() for z in shifts]
            row = row / ((weights.abs()[:, None] * torch.stack(open_shares)).sum() + 1e-3)
        loss = loss + (row * inputs.grad_output[b, h, i]).sum() + (shifts[0] * inputs.grad_scores[b, h, i, seen]).sum()
        output[b, h, i], scores[b, h, i, seen] = row.detach(), shifts[0].detach()
    return Result(output, scores, dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)))


def _closed_form(v: Tensor, z: Tensor, signed: bool, gate: bool) -> Tensor:
    def l1(columns: Tensor) -> Tensor:
        return torch.cdist(z[None], columns.T.contiguous(), p=1)[0]

    if gate:
        return (v.sum(0) + l1(v / 2) - l1(-v / 2)) / 2
    if signed:
        return (v.sum(0) + l1(v.relu()) - l1((-v).relu())) / 2
    return (v.sum(0) - z.sum() + l1(v)) / 2


# Drawing


def _padding(kind: str | None, case: Case) -> Tensor | None:
    """A different number of real keys in each sequence."""
    if kind is None:
        return None
    if kind == "holes":
        real = torch.rand(case.B, case.N) < 0.6
        real[:, case.N // 2] = True
        return real
    lengths = torch.arange(case.B)[:, None] + case.N // 2
    position = torch.arange(case.N)
    return position < lengths if kind == "right" else position >= case.N - lengths


def _scores(case: Case, query: Tensor, key: Tensor, scalars: dict[str, Tensor], visible: Tensor) -> Tensor:
    """S + alpha in float64, `(R, B, H, M, N)`."""
    s = torch.cdist(query.double(), key.double(), p=1) / math.sqrt(query.shape[-1])
    if case.centered and case.center == "mean":
        s = s - (s * visible).sum(-1, keepdim=True) / visible.sum(-1, keepdim=True).clamp(min=1)
    elif case.centered and key.shape[2]:
        s = s - s.masked_fill(~visible, math.inf).amin(-1, keepdim=True)
        s = s.masked_fill(~visible, 0)
    alpha, gamma = (scalars[name].double().expand(*scalars[name].shape[:-1], case.H) for name in ("alpha", "gamma"))
    alpha, gamma = (x.reshape(-1, 1, case.H, 1, 1) for x in (alpha, gamma))
    return gamma * s + alpha


def _near_kinks(case: Case, shift: Tensor, scalars: dict[str, Tensor]) -> Tensor:
    """Where a score is near a kink of the threshold, or of what the sum is divided by."""
    gate = case.inhibition == "gate"
    near = torch.zeros_like(shift, dtype=torch.bool) if gate else shift.abs() < _KINK_MARGIN
    if "delta" in scalars:
        ramp = scalars["delta"].double().reshape(-1, 1, 1) * shift
        near |= (ramp.abs() - (0.5 if gate else 1.0)).abs() < _KINK_MARGIN
    return near.any(0)


def _draw_query(case: Case, key: Tensor, visible: Tensor, scalars: dict[str, Tensor]) -> Tensor:
    """Queries whose scores and coordinates stay away from the kinks S = -alpha and q = k (exact ties are no trouble)."""

    def fresh() -> Tensor:
        query = (torch.randn(case.B, case.H, case.M, case.D) + case.offset).to(case.dtype)
        if case.ties:
            query[:, :, 0] = key[:, :, 0]
        return query

    query = fresh()
    for _ in range(100 if case.off_kinks else 0):
        gap = (query.double()[..., :, None, :] - key.double()[..., None, :, :]).abs()
        near = ((gap > 0) & (gap < _KINK_MARGIN)).any(-1)
        near |= _near_kinks(case, _scores(case, query, key, scalars, visible), scalars)
        bad = (near & visible).any(-1, keepdim=True)
        if not bad.any():
            break
        query = torch.where(bad, fresh(), query)
    else:
        assert not case.off_kinks, f"no queries away from the kinks for {case}"
    return query


def _draw_value(case: Case, z: Tensor, visible: Tensor) -> Tensor:
    """Values scaled so that about half of the terms are active, away from the kinks |v| = Z, or those of a gate."""
    gate = case.inhibition == "gate"

    def gap(value: Tensor) -> Tensor:
        magnitude = value.double().abs() if case.signed else value.double()
        return magnitude[..., None, :, :] / (2 if gate else 1) - (z.abs() if gate else z)[..., None]

    def share(scale: float) -> float:
        return (gap(unit * scale) > 0)[visible.expand(z.shape)].double().mean().item()

    unit = torch.randn(case.B, case.H, case.N, case.D)
    scale = min((0.1 * 1.5**n for n in range(14)), key=lambda scale: abs(share(scale) - 0.5)) if visible.any() else 1.0
    value = (unit * scale).to(case.dtype)
    for _ in range(100 if case.off_kinks else 0):
        bad = ((gap(value).abs() < _KINK_MARGIN) & visible[..., None]).any(-3).any(0)
        if not bad.any():
            break
        value = torch.where(bad, (torch.randn_like(unit) * scale).to(case.dtype), value)
    else:
        assert not case.off_kinks, f"no values away from the kinks for {case}"
    return value


def draw(case: Case) -> Inputs:
    """The inputs of a case, the same on every call."""
    torch.manual_seed(case.seed)
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    scalars = {
        name: (getattr(case, name) * (1 + 0.1 * torch.arange(math.prod(case.scalars)))).to(wide).reshape(case.scalars)
        for name in ("alpha", "beta", "gamma")
    }
    if len(case.scalars) == 2:  # the second radius reaches further
        scalars["alpha"] = scalars["alpha"] - 0.6 * torch.arange(case.scalars[0])[:, None]
    if case.delta is not None:
        scalars["delta"] = (case.delta * (1 + 0.1 * torch.arange(math.prod(case.scalars[-1:])))).to(wide)
    key = (torch.randn(case.B, case.H, case.N, case.D) + case.offset).to(case.dtype)
    options: dict[str, Any] = {"signed": case.signed, "centered": case.centered, "causal": case.causal}
    options |= (
        {"center": case.center, "inhibition": case.inhibition} if case.center + case.inhibition != "meanthreshold" else {}
    )
    options["key_padding_mask"] = _padding(case.padding, case)
    options["key_dropout_mask"] = torch.rand(case.B, case.N) < 0.7 if case.dropout else None
    options["attn_mask"] = torch.rand(case.attn_mask) < 0.7 if case.attn_mask is not None else None
    visible = visible_keys(torch.empty(case.B, case.H, case.M, case.D), key, **options)

    query = _draw_query(case, key, visible, scalars)
    shift = _scores(case, query, key, scalars, visible)
    value = _draw_value(case, shift if case.inhibition == "gate" else shift.relu(), visible)
    return Inputs(
        {"query": query, "key": key, "value": value, **scalars},
        options,
        # Rounded to the case's dtype, so that judge and operator take the same incoming gradients.
        grad_output=torch.randn(query.shape).to(case.dtype).double(),
        grad_scores=torch.randn(visible.shape).to(case.dtype).double(),
    )


def judge(inputs: Inputs, through_scores: bool = False) -> Result:
    """The triple loop on these inputs; without `through_scores` nothing flows back through Z."""
    if not through_scores:
        inputs = Inputs(inputs.tensors, inputs.options, inputs.grad_output, torch.zeros_like(inputs.grad_scores))
    return loop_attention(inputs)


# Numbers that are not finite

NOT_FINITE = (math.nan, math.inf, -math.inf)
# What is not finite: one number of the middle query, of the first or the last key or value that is seen, of the gradient of
# the middle query, or a scalar of the first head; nothing that counts; and always all that is not seen, or is dropped.
SPOILT = ("nothing", "query", "key", "last key", "value", "last value", "gradient", "alpha", "beta", "gamma")


def spoil(inputs: Inputs, number: float, place: str) -> Inputs:
    """The inputs of a call with numbers that are not finite: in the first head of the last sequence, if they count."""
    tensors = {name: tensor.clone() for name, tensor in inputs.tensors.items()}
    options, grad_output = inputs.options, inputs.grad_output.clone()
    batch, _, keys, size = tensors["key"].shape
    everything = torch.ones(batch, keys, dtype=torch.bool)
    real, kept = (everything if options.get(f"key_{n}_mask") is None else options[f"key_{n}_mask"] for n in _KEY_MASKS)
    if options.get("attn_mask") is not None:
        real = real & options["attn_mask"].expand(*grad_output.shape[:3], keys).any(1).any(1)
    for name, counts in (("key", real), ("value", real & kept)):
        tensors[name].masked_fill_(~counts[:, None, :, None], number)
        if place.endswith(name):
            index = counts[-1].nonzero().flatten()[-1 if place.startswith("last") else 0]
            tensors[name][-1, 0, index, size // 2] = number
    middle = grad_output.shape[2] // 2
    if place == "query":
        tensors["query"][-1, 0, middle, size // 2] = number
    elif place == "gradient":
        grad_output[-1, 0, middle, size // 2] = number
    elif place in tensors and tensors[place].ndim < 4:
        tensors[place].view(-1)[0] = number
    return Inputs(tensors, options, grad_output, inputs.grad_scores)


_KEY_MASKS = ("padding", "dropout")


def spoilt(case: Case, number: float, place: str, through_scores: bool = False) -> tuple[Inputs, Result]:
    """Spoilt inputs of a case and the judge's result."""
    inputs = spoil(draw(case), number, place)
    return inputs, judge(inputs, through_scores)


@cache
def judged(case: Case, through_scores: bool = False) -> tuple[Inputs, Result]:
    """Inputs and the judge's result of a case, worked out once for all backends; 20 to 80 % of the terms are active."""
    inputs = draw(case)
    want = judge(inputs, through_scores)
    assert 0.2 <= want.active <= 0.8, f"{want.active:.0%} of the terms are active in {case}: this tests nothing"
    return inputs, want
