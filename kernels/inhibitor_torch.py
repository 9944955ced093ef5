"""Inhibitor attention in plain torch, blocked over queries: the backend that runs everywhere.

Forward and backward hold one block of queries at a time, O(B·H·block·N·d) beyond inputs and outputs; nothing of size
M x N is kept for the backward pass, which recomputes the scores. Under torch.compile and torch.export there is one
block only: the compiler fuses the broadcasts into reductions, and a loop whose length depends on the sequence would be
compiled anew for every length.
"""

import torch
from torch import Tensor

from .inhibitor_masks import KeyMasks

# Elements of one (B, H, block, N, d) temporary. Small enough for a core's cache, large enough to hide the cost of a call.
_BLOCK_ELEMENTS = {"cpu": 1 << 18, "other": 1 << 25}


def _query_blocks(query: Tensor, key: Tensor) -> list[slice]:
    queries = query.shape[-2]
    if torch.compiler.is_compiling():
        return [slice(None)]
    budget = _BLOCK_ELEMENTS["cpu" if query.device.type == "cpu" else "other"]
    size = max(1, budget // max(1, key.numel()))
    return [slice(start, min(start + size, queries)) for start in range(0, queries, size)]


def _distances(query: Tensor, key: Tensor) -> Tensor:
    """Manhattan distances `(B, H, m, N)` of queries `(B, H, m, d)` to keys `(B, H, N, d)`."""
    if torch.compiler.is_compiling():
        return (query[..., :, None, :] - key[..., None, :, :]).abs().sum(-1)
    return torch.cdist(query, key, p=1)


def _row_mean(x: Tensor, visible: Tensor | None) -> Tensor:
    """Mean over the visible keys of each row, 0 for a row without any."""
    if visible is None:
        return x.mean(-1, keepdim=True)
    return x.masked_fill(~visible, 0).sum(-1, keepdim=True) / visible.sum(-1, keepdim=True).clamp(min=1)


def _centered_distances(query: Tensor, key: Tensor, visible: Tensor | None, centered: bool) -> Tensor:
    distance = _distances(query, key)
    # The scores are linear in the distances, so centring these centres those, whatever the sign of gamma.
    return distance - _row_mean(distance, visible) if centered else distance


def _inhibit(value: Tensor, shift: Tensor, signed: bool) -> Tensor:
    """Sum over the keys of the values that exceed the shift: `(B, H, N, d)`, `(B, H, m, N)` -> `(B, H, m, d)`.

    Signed inhibition is soft-thresholding, since Z >= 0. A shift of infinity removes a key exactly.
    """
    value = value[..., None, :, :]
    if signed:
        return (value.abs() - shift[..., None]).relu_().copysign(value).sum(-2)
    return (value - shift[..., None]).relu_().sum(-2)


class _InhibitorAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, alpha, beta, gamma, masks: KeyMasks, centered, signed, return_scores):
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        scores = query.new_empty((*query.shape[:-1], key.shape[-2])) if return_scores else None
        blocks = _query_blocks(query, key)
        scale = gamma * query.shape[-1] ** -0.5
        for rows in blocks:
            visible = masks.visible(query.shape[-2], key.shape[-2], query.device, rows)
            aggregated = masks.aggregated(visible)
            z = (scale * _centered_distances(query[..., rows, :], key, visible, centered) + alpha).relu_()
            shift = z if aggregated is None else z.masked_fill(~aggregated, torch.inf)
            output[..., rows, :] = beta * _inhibit(value, shift, signed)
            if scores is not None:
                scores[..., rows, :] = z if visible is None else z.masked_fill(~visible, 0)
        ctx.save_for_backward(query, key, value, alpha, beta, gamma, masks.padding, masks.dropout, masks.attention)
        ctx.causal, ctx.centered, ctx.signed = masks.causal, centered, signed
        return output, scores

    @staticmethod
    def backward(ctx, grad_output, grad_scores):
        with torch.no_grad():
            gradients = _InhibitorAttention._gradients(ctx, grad_output, grad_scores)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # create_graph=True: what was computed without a graph must not pass for a constant.
            gradients = _RefuseSecondDerivative.apply(*gradients, *ctx.saved_tensors[:6])
        return *gradients, None, None, None, None

    @staticmethod
    def _gradients(ctx, grad_output, grad_scores):
        query, key, value, alpha, beta, gamma, padding, dropout, attention = ctx.saved_tensors
        masks = KeyMasks(padding, dropout, attention, ctx.causal)
        root = query.shape[-1] ** -0.5
        magnitude, sign = (value.abs(), value.sign()) if ctx.signed else (value, None)
        grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        grad_alpha, grad_beta, grad_gamma = (torch.zeros_like(scalar) for scalar in (alpha, beta, gamma))

        for rows in _query_blocks(query, key):
            visible = masks.visible(query.shape[-2], key.shape[-2], query.device, rows)
            aggregated = masks.aggregated(visible)
            block, grad_block = query[..., rows, :], grad_output[..., rows, :]
            distance = _centered_distances(block, key, visible, ctx.centered)
            scores = gamma * root * distance + alpha
            z = scores.relu()
            shift = z if aggregated is None else z.masked_fill(~aggregated, torch.inf)
            grad_beta += (grad_block * _inhibit(value, shift, ctx.signed)).sum_to_size(beta.shape)

            # Values: each takes the gradient of the queries that let it pass.
            passed = magnitude[..., None, :, :] > shift[..., None]
            passed = torch.where(passed, (beta * grad_block)[..., :, None, :], 0.0)
            grad_value += passed.sum(-3)
            grad_z = -(passed if sign is None else passed * sign[..., None, :, :]).sum(-1)
            if grad_scores is not None:
                grad_z += grad_scores[..., rows, :]

            # Scores: through the relu, then the scalars, then the centring.
            grad_s = torch.where(scores > 0, grad_z, 0.0)
            if visible is not None:
                grad_s = grad_s.masked_fill(~visible, 0)
            grad_alpha += grad_s.sum_to_size(alpha.shape)
            grad_gamma += root * (grad_s * distance).sum_to_size(gamma.shape)
            if ctx.centered:
                grad_s = grad_s - _row_mean(grad_s, visible)
                if visible is not None:
                    grad_s = grad_s.masked_fill(~visible, 0)

            # Distances: sign(0) = 0, so a query next to its own duplicate gets nothing from it.
            direction = (block[..., :, None, :] - key[..., None, :, :]).sign_()
            direction = direction * (gamma * root * grad_s)[..., None]
            grad_query[..., rows, :] = direction.sum(-2)
            grad_key -= direction.sum(-3)

        return grad_query, grad_key, grad_value, grad_alpha, grad_beta, grad_gamma


class _RefuseSecondDerivative(torch.autograd.Function):
    """Hands the six gradients on, tied to the six inputs, so that differentiating them raises."""

    @staticmethod
    def forward(ctx, *gradients_and_inputs):
        return tuple(gradient.view_as(gradient) for gradient in gradients_and_inputs[:6])

    @staticmethod
    def backward(ctx, *grad_outputs):
        raise RuntimeError('inhibitor_attention has no second derivative in its "torch" form; use backend="naive" for one.')


def torch_inhibitor_attention(
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
    """Inhibitor attention with explicit gradients and O(B·H·block·N·d) extra memory.

    Shapes and meaning as in `naive_inhibitor_attention`; the scores Z are computed in full only with `return_scores`.
    Differentiating its gradients raises RuntimeError.
    """
    if masks.padding is not None:
        # Whatever stands at a padded position must not reach the result: 0 * nan is nan.
        padded = ~masks.padding[:, None, :, None]
        key, value = key.masked_fill(padded, 0), value.masked_fill(padded, 0)
    return _InhibitorAttention.apply(query, key, value, alpha, beta, gamma, masks, centered, signed, return_scores)
