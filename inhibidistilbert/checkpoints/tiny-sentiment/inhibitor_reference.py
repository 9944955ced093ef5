"""The definition of inhibitor attention, written as the formulas stand: the reference for every other backend.

Source: Brännvall, "The Inhibitor" (arXiv 2310.02041), with the centring and the signed form of
Zhang and Brännvall, "InhibiDistilbert" (arXiv 2503.15983).
"""

import torch
from torch import Tensor

from .inhibitor_forms import NOTHING_PASSES, Form, nearest_key
from .inhibitor_masks import KeyMasks


def naive_inhibitor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    beta: Tensor,
    gamma: Tensor,
    delta: Tensor | None,
    masks: KeyMasks,
    form: Form,
    return_scores: bool,
) -> tuple[Tensor, Tensor | None]:
    """Inhibitor attention with every intermediate in memory: O(B·H·M·N·d).

    query `(B, H, M, d)`; key, value `(B, H, N, d)`; alpha, beta, gamma `(R, 1 or H, 1, 1)` for R radii; delta
    `(1, 1 or H, 1, 1)`, None where the sum is not divided by what passes; all of one floating dtype, in which everything is
    computed. Returns the output `(B, H, M, d)` and, with `return_scores`, Z `(B, H, M, N)` of the first radius.

    NaN and infinity pass through the formulas wherever a query sees them (if it sees no key, beta · 0 is left), and
    autograd's rules hold for their gradients: relu passes a gradient on at NaN, and sign(nan) is 0. What a query does not
    see, and a dropped value, reaches nothing of it.
    """
    visible = masks.visible(query.shape[-2], key.shape[-2], query.device)
    aggregated = masks.aggregated(visible)

    # Pairs that do not count are taken out before there is any arithmetic with them, forward or backward: 0 * nan is nan.
    difference = query[..., :, None, :] - key[..., None, :, :]
    if visible is not None:
        difference = difference.masked_fill(~visible[..., None], 0)
    distance = difference.abs().sum(-1)
    center = None
    if form.center == "mean":
        count = max(1, key.shape[-2]) if visible is None else visible.sum(-1, keepdim=True).clamp(min=1)
        center = distance.sum(-1, keepdim=True) / count
    elif form.center == "least" and key.shape[-2]:
        # One of several nearest keys alone has the gradient.
        center = distance.gather(-1, nearest_key(distance, visible))

    outputs: list[Tensor] = []
    openings, scores = [], []
    for alpha_r, beta_r, gamma_r in zip(alpha, beta, gamma, strict=True):
        scale = gamma_r * query.shape[-1] ** -0.5
        score = scale * distance
        if center is not None:
            score = score - scale * center
        z = form.shift(score + alpha_r)
        if visible is not None:
            z = z.masked_fill(~visible, 0)
        scores.append(z)
        weight = beta_r if outputs else torch.ones_like(beta_r)
        outputs.append(weight * _passed(value[..., None, :, :], z[..., None], aggregated, form).sum(-2))
        if delta is not None:
            opening = form.opening(z, delta)
            opening = opening if visible is None else opening.masked_fill(~visible, 0)
            openings.append(weight.abs() * opening.sum(-1, keepdim=True))
    output = beta[0] * sum(outputs[1:], outputs[0])
    if delta is not None:
        output = output / (sum(openings) + NOTHING_PASSES)
    return output, scores[0] if return_scores else None


def _passed(value: Tensor, shift: Tensor, aggregated: Tensor | None, form: Form) -> Tensor:
    """What of each value `(B, H, 1, N, d)` passes under the shift `(B, H, M, N, 1)`: `(B, H, M, N, d)`."""
    size = value.abs() / 2 if form.gate else value.abs() if form.signed else value
    excess = size - shift
    if aggregated is not None:
        excess = excess.masked_fill(~aggregated[..., None], 0)
    if not form.gate:
        # Signed, relu(v⁺ - Z) - relu(v⁻ - Z): at most one of the two is not 0.
        return value.sign() * excess.relu() if form.signed else excess.relu()
    # relu(v/2 - Z) - relu(-v/2 - Z), in the three parts it is made of: nothing, half a value minus Z, the value itself.
    opening = (value / 2 - value.sign() * shift).masked_fill(excess <= 0, 0)
    return torch.where((excess >= value.abs()) & (excess > 0), value, opening)
