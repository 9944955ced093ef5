"""The definition of inhibitor attention, written as the formulas stand: the reference for every other backend.

Source: Brännvall, "The Inhibitor" (arXiv 2310.02041), with the centring and the signed form of
Zhang and Brännvall, "InhibiDistilbert" (arXiv 2503.15983).
"""

from torch import Tensor

from .masks import KeyMasks


def naive_inhibitor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    beta: Tensor,
    gamma: Tensor,
    masks: KeyMasks,
    centered: bool,
    signed: bool,
    return_scores: bool,
) -> tuple[Tensor, Tensor | None]:
    """Inhibitor attention with every intermediate in memory: O(B·H·M·N·d).

    query `(B, H, M, d)`; key, value `(B, H, N, d)`; alpha, beta, gamma `(1, 1 or H, 1, 1)`; all of one floating dtype,
    in which everything is computed. Returns the output `(B, H, M, d)` and, with `return_scores`, Z `(B, H, M, N)`.

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
    distance, scale = difference.abs().sum(-1), gamma * query.shape[-1] ** -0.5
    scores = scale * distance
    if centered:
        count = max(1, key.shape[-2]) if visible is None else visible.sum(-1, keepdim=True).clamp(min=1)
        scores = scores - scale * (distance.sum(-1, keepdim=True) / count)
    z = (scores + alpha).relu()
    if visible is not None:
        z = z.masked_fill(~visible, 0)

    value, shift = value[..., None, :, :], z[..., None]
    # relu(v⁺ - Z) - relu(v⁻ - Z): at most one of the two is not 0.
    excess = (value.abs() if signed else value) - shift
    if aggregated is not None:
        excess = excess.masked_fill(~aggregated[..., None], 0)
    inhibited = value.sign() * excess.relu() if signed else excess.relu()
    output = beta * inhibited.sum(-2)
    return output, z if return_scores else None
