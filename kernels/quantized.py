r"""The definition of int8 inhibitor attention, in plain torch: which grids, which rounding, which order.

Each head of each sequence has two grids of its own, from its real keys alone, so that nothing depends on padding, on the
other sequences of a batch, or on other queries:

- \(v = t\,v_8\), with \(v_8\) in -255 .. 255 and \(t = \max|v| / 255\), over the keys that dropout keeps.
- \(k = \min_j k_{jc} + s\,k_8\), with \(k_8\) in 0 .. 255 and the zero of each channel at its least key. s takes the widest
  channel to 255, or is larger, so that \(c = \gamma s / (t \sqrt d)\), by which a step moves Z on the grid of v, is 1/32 at
  least: a finer grid could not be seen in Z.

Queries go on the keys' grid. Where one lies outside of all keys of a channel, its distance to each of them is the same
number larger than that of the grid's nearest end: what it exceeds the grid by is added to its whole row, so that
saturating is exact.

The scores come from whole numbers, as many bits wide as the vector instructions of processors have them:

- \(P_{ij} = \sum_c 2 \max(q_8, k_8) - k_8\), the distance on the grid plus \(\sum_c q_8\), a constant of the row;
- \(T_{ij} = 2^h P_{ij} - m_i\), saturated to 16 bits: 2^h times the distance, centred, with \(\alpha\) on top. m is a whole
  number for each row, h = 0 .. 5 the same for all, so that \(|c| / 2^h\) is below 1/16 where it can be;
- \(z_{ij} = \lfloor T_{ij} \mu / 2^{15} + 1/2 \rfloor\), saturated to 0 .. 255: Z on the grid of v. Here
  \(\mu = 2^{15} c / 2^h\) in 16 bits. There is no larger v, so that saturating is exact, also that of T, by
  which z would be 1023 or more;
- \(H_{ik} = \beta t \sum_j \mathrm{sign}(v_8) \mathrm{relu}(|v_8| - z_{ij})\).

A gate takes Z as it comes, so z is saturated to -255 .. 255. Its grid is twice as fine as that of v, so that v / 2 needs no
rounding: t / 2 stands for t in c and in what alpha adds, and
\(H_{ik} = \beta (t / 2) \sum_j \mathrm{sign}(v_8) \mathrm{clamp}(|v_8| - z_{ij}, 0, 2 |v_8|)\).

Where scores count from the nearest key, the first one with the least \(P_{ij}\), m comes from its distance in 64ths of a
step: the rounding of one key would else shift a whole row.

What a sum is divided by comes from T before it is saturated to 16 bits. Of a constant \(1 / \delta\) the share
\(1 - \kappa T\) passes, for a gate \(1/2 - \kappa T\), with \(\kappa = \delta c t / 2^h\) (a gate: t / 2), until nothing
more opens or closes. The T at which that is are rounded to whole numbers. So the shares of a row are whole numbers of equal
steps, which are summed.

A key with a number that is not finite, of its own or of its value where that counts, is left out of the grids, and the row
of every query that sees it is NaN. So are the row of a query with such a number, and all rows of a head with such a scalar.
What a query does not see, and a dropped value, spoil nothing of it.

What leads to the whole numbers is one float32 operation at a time, rounded to the nearest, ties to even: a compiled form
can, and does, agree with this one to the bit.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .blocked import _distances, _query_blocks, without_hidden
from .forms import NOTHING_PASSES, Form, nearest_key
from .masks import KeyMasks

LEVELS = 255
# Values below this are 0 to their grid: its reciprocal must not overflow.
SMALLEST = 2.0**-100
# 1 / the least |c|; of the range below twice that, mu has 11 bits.
FINEST = 32
LARGEST_SHIFT = 5
# How many steps a query may lie outside of its keys' grid, and how large m may be: unless alpha makes up for it, which then
# is over a hundred times the largest value, Z is saturated long before.
FARTHEST = 2.0**20
LARGEST_OFFSET = 2.0**24
LARGEST_16 = 32767
# Parts of a step of the grid in which the distance to the nearest key is measured.
PARTS = 64
# How many steps of T an opening may take, and how far it follows T: as far as distances alone lead. Sums of several hundred
# fit into 32 bits.
LARGEST_RAMP = 2.0**30
LARGEST_OPENING = 2.0**22
# Keys whose values, twice, a float32 sums exactly, and those for which a sum of 32 bits holds them.
EXACT_KEYS = 2**24 // (2 * LEVELS)
LARGEST_KEYS = (2**31 - 1) // (2 * LEVELS)


class Grids(NamedTuple):
    """The grids of every head, each `(B, H, 1, 1)` float32 or as said.

    origin: `(B, H, 1, d)`, the least key of each channel.
    key_rate: 1 / s, steps of the grid of queries and keys in one unit.
    slope: c, by how many steps of its grid Z grows with one step of distance.
    value_step: t, the distance of two neighbours on the grid of values.
    score_step: that of two neighbours on the grid of Z, t; for a gate t / 2.
    """

    origin: Tensor
    key_rate: Tensor
    slope: Tensor
    value_step: Tensor
    score_step: Tensor


def _largest(x: Tensor) -> Tensor:
    """Over the rows and channels of each head: `(B, H, N, d)` -> `(B, H, 1, 1)`."""
    return x.amax((-2, -1), keepdim=True)


def choose_grids(key: Tensor, value: Tensor, real: Tensor, gamma: Tensor, gate: bool) -> Grids:
    """The grids of the keys `real`, `(B, H, N, 1)` bool, of `key` and `value`, `(B, H, N, d)`.

    Values that do not count must be 0.
    """
    lowest, highest = key.masked_fill(~real, torch.inf), key.masked_fill(~real, -torch.inf)
    origin = lowest.amin(-2, keepdim=True)
    spread = _largest(highest.amax(-2, keepdim=True) - origin)
    # A sequence of padding alone has any grid.
    empty = ~real.any(-2, keepdim=True)
    origin, spread = origin.masked_fill(empty, 0), spread.masked_fill(empty, 0)

    reach = _largest(value.abs())
    value_step = torch.where(reach < SMALLEST, 1.0, reach * (1 / LEVELS))
    score_step = value_step * (0.5 if gate else 1.0)
    slope_of_unit = gamma * key.shape[-1] ** -0.5 / score_step
    finest, widest = slope_of_unit.abs() * FINEST, spread.reciprocal() * LEVELS
    key_rate = torch.where(finest < widest, finest, widest)
    slope = torch.where(finest < widest, torch.where(gamma < 0, -1 / FINEST, 1 / FINEST), slope_of_unit / key_rate)
    return Grids(origin, key_rate, slope, value_step, score_step)


def quantize_rows(x: Tensor, grids: Grids) -> Tensor:
    """Queries or keys `(B, H, L, d)` in steps from the grid's origin: whole numbers, not limited to the grid."""
    return ((x - grids.origin) * grids.key_rate).clamp(-FARTHEST, FARTHEST).round()


def quantize_finely(x: Tensor, grids: Grids) -> Tensor:
    """Queries or keys in `PARTS` of a step, limited to the grid."""
    return (((x - grids.origin) * grids.key_rate).clamp(0, LEVELS) * PARTS).round()


def quantize_values(value: Tensor, grids: Grids) -> Tensor:
    """Whole numbers -255 .. 255."""
    return (value * grids.value_step.reciprocal()).round()


class Slope(NamedTuple):
    """c as processors multiply: `scale` = 2^h, and `factor` = mu, whole numbers as `(B, H, 1, 1)` float32."""

    scale: Tensor
    factor: Tensor


def choose_slope(slope: Tensor) -> Slope:
    """c in 16 bits. From 32 on it is 32: a step of distance is an eighth of the largest value then."""
    scale = torch.ones_like(slope)
    for power in range(1, LARGEST_SHIFT + 1):
        scale = torch.where(slope.abs() * FINEST >= 2.0**power, 2.0**power, scale)
    factor = (slope * (LARGEST_16 + 1) / scale).round()
    return Slope(scale, factor.clamp(-LARGEST_16, LARGEST_16))


class Ramp(NamedTuple):
    """Which share of a constant 1 / delta passes: `(end - clamp(T, least, most)) * share`; each `(B, H, 1, 1)` float32, and
    all but `share` whole numbers."""

    end: Tensor
    least: Tensor
    most: Tensor
    share: Tensor

    def opened(self, distance: Tensor, visible: Tensor | None) -> Tensor:
        """Summed over the visible keys of each query, from T `(B, H, m, N)`: `(B, H, m, 1)`."""
        inside = distance.clamp(self.least, self.most)
        count: Tensor | int = distance.shape[-1]
        if visible is not None:
            inside, count = inside.masked_fill(~visible, 0), visible.sum(-1, keepdim=True)
        whole = count * self.end.to(torch.int64) - inside.sum(-1, keepdim=True, dtype=torch.int64)
        return whole.to(distance.dtype) * self.share


def choose_ramp(rise: Tensor, slope: Tensor, gate: bool) -> Ramp:
    """From `rise`, the kappa above, and c."""
    start = 0.5 if gate else 1.0
    steps = (start / rise).abs().clamp(1.0, LARGEST_RAMP).round()
    end = torch.where(rise < 0, -steps, steps)
    # With a delta below 0 a threshold opens without an end.
    closing = torch.ones_like(rise, dtype=torch.bool) if gate else (rise < 0) == (slope < 0)
    bound = torch.where(closing, steps, LARGEST_OPENING).clamp(max=LARGEST_OPENING)
    below, above = (slope < 0) | gate, (slope >= 0) | gate
    return Ramp(end, torch.where(below, -bound, 0), torch.where(above, bound, 0), start / end)


def _whole_sum(x: Tensor) -> Tensor:
    """Over the last dimension, exact."""
    return x.sum(-1, keepdim=True, dtype=torch.int64).to(x.dtype)


def _baseline(shifted: Tensor, steps: Tensor, visible: Tensor | None, centered: bool) -> Tensor:
    """The shifted distance `(B, H, m, 1)` at which the score of each query is 0."""
    if not centered:
        on_grid = steps.clamp(0, LEVELS)
        return _whole_sum(on_grid - (steps - on_grid).abs())
    if visible is None:
        count: Tensor | int = shifted.shape[-1]
    else:
        shifted = shifted.masked_fill(~visible, 0)
        count = visible.sum(-1, keepdim=True).clamp(min=1)
    return _whole_sum(shifted) / count


def _nearest_distance(query: Tensor, key: Tensor, nearest: Tensor) -> Tensor:
    """From queries `(B, H, m, d)` to one key each, `nearest` `(B, H, m, 1)`, both in `PARTS`: `(B, H, m, 1)` in steps."""
    return _whole_sum((query - key.gather(-2, nearest.expand(-1, -1, -1, key.shape[-1]))).abs()) / PARTS


def quantized_inhibitor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    beta: Tensor,
    gamma: Tensor,
    delta: Tensor | None,
    masks: KeyMasks,
    form: Form,
) -> Tensor:
    """Inhibitor attention on int8 grids: O(B·H·block·N·d) extra memory, as the plain torch form.

    query `(B, H, M, d)`; key, value `(B, H, N, d)`; alpha, beta, gamma, delta `(1, 1 or H, 1, 1)`; all float32. Sums are
    whole numbers, exact for any number of keys. Returns `(B, H, M, d)`.
    """
    if query.numel() == 0 or key.numel() == 0:
        return torch.zeros_like(query)
    key, value = without_hidden(key, value, masks)
    if not form.signed:
        value = value.relu()
    flawed = ~(key.isfinite() & value.isfinite()).all(-1, keepdim=True)
    key, value = key.masked_fill(flawed, 0), value.masked_fill(flawed, 0)
    real = ~flawed if masks.padding is None else ~flawed & masks.padding[:, None, :, None]

    grids = choose_grids(key, value, real, gamma, form.gate)
    slope = choose_slope(grids.slope)
    steps, keys, values = quantize_rows(query, grids), quantize_rows(key, grids), quantize_values(value, grids)
    shift = alpha / grids.score_step / grids.slope
    scale = beta * grids.score_step + 0 * (grids.slope + shift + grids.value_step)  # NaN where a grid is not finite
    ramp = None
    if delta is not None:
        rise = delta * (grids.slope * grids.score_step / slope.scale)
        ramp, scale = choose_ramp(rise, grids.slope, form.gate), scale + 0 * rise
    lowest, most = (-LEVELS, 2 * values.abs()[..., None, :, :]) if form.gate else (0, None)
    fine_keys = quantize_finely(key, grids)
    exact = torch.float32 if key.shape[-2] <= EXACT_KEYS else torch.int64
    magnitude, sign = values.abs()[..., None, :, :], values.sign()[..., None, :, :]

    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    for rows in _query_blocks(query, key):
        visible = masks.visible(query.shape[-2], key.shape[-2], query.device, rows)
        block = steps[..., rows, :]
        on_grid = block.clamp(0, LEVELS)
        # Distances of whole numbers, the sums below 2^24: exact in float32.
        constant = on_grid.sum(-1, keepdim=True)
        shifted = _distances(on_grid, keys) + constant
        if form.center == "least":
            fine = quantize_finely(query[..., rows, :], grids)
            baseline = _nearest_distance(fine, fine_keys, nearest_key(shifted, visible)) + constant
        else:
            baseline = _baseline(shifted, block, visible, form.centered)
        offset = (baseline - shift) * slope.scale
        offset = offset.clamp(-LARGEST_OFFSET, LARGEST_OFFSET).round()
        distance = shifted * slope.scale - offset
        # Beyond 2^24, where the product is rounded, z is saturated.
        z = (distance.clamp(-LARGEST_16 - 1, LARGEST_16) * slope.factor * 2.0**-15 + 0.5).floor().clamp(lowest, LEVELS)
        if visible is not None:
            z = z.masked_fill(~visible, LEVELS)  # no value exceeds it
        passed = (magnitude - z[..., None]).relu_()
        whole = ((passed if most is None else passed.minimum(most)) * sign).sum(-2, dtype=exact)
        seen = flawed.mT if visible is None else flawed.mT & visible
        row_scale = torch.where(seen.any(-1, keepdim=True), torch.nan, scale)
        if ramp is not None:
            row_scale = row_scale / (ramp.opened(distance, visible) + NOTHING_PASSES)
        output[..., rows, :] = (row_scale + (0 * query[..., rows, :]).sum(-1, keepdim=True)) * whole
    return output
