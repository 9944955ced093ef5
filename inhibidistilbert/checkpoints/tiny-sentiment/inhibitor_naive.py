"""The definition of inhibitor attention, written as the formulas stand: the reference for every other backend.

Source: Brännvall, "The Inhibitor" (arXiv 2310.02041), with the centring and the signed form of
Zhang and Brännvall, "InhibiDistilbert" (arXiv 2503.15983).
"""

from torch import Tensor

from .inhibitor_masks import KeyMasks


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
    """
    queries, keys = query.shape[-2], key.shape[-2]
    visible = masks.visible(queries, keys, query.device)
    if masks.padding is not None:
        # Whatever stands at a padded position must not reach the result: 0 * nan is nan.
        padded = ~masks.padding[:, None, :, None]
        key, value = key.masked_fill(padded, 0), value.masked_fill(padded, 0)

    distance = (query[..., :, None, :] - key[..., None, :, :]).abs().sum(-1)
    scores = gamma * query.shape[-1] ** -0.5 * distance
    if centered:
        if visible is None:
            scores = scores - scores.mean(-1, keepdim=True)
        else:
            count = visible.sum(-1, keepdim=True).clamp(min=1)
            scores = scores - scores.masked_fill(~visible, 0).sum(-1, keepdim=True) / count
    z = (scores + alpha).relu()
    if visible is not None:
        z = z.masked_fill(~visible, 0)

    shift, value = z[..., None], value[..., None, :, :]
    if signed:
        inhibited = (value.relu() - shift).relu() - ((-value).relu() - shift).relu()
    else:
        inhibited = (value - shift).relu()
    aggregated = masks.aggregated(visible)
    if aggregated is not None:
        inhibited = inhibited.masked_fill(~aggregated[..., None], 0)
    output = beta * inhibited.sum(-2)
    return output, z if return_scores else None
