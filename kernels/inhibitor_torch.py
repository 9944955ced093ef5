"""Inhibitor attention in plain torch, blocked over queries: the backend that runs everywhere.

Forward and backward hold one block of queries at a time, O(B·H·block·N·d) beyond inputs and outputs. Nothing of size
M x N is kept for the backward pass, which recomputes the scores; where the scores are asked for, those alone are kept.
Under torch.compile and torch.export there is one block only: the compiler fuses the broadcasts into reductions, and a
loop whose length depends on the sequence would be compiled anew for every length.
"""

from typing import NamedTuple

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

    Signed inhibition is soft-thresholding, since Z >= 0. A shift of infinity removes a key exactly. The sign is a factor
    because ONNX has no copysign.
    """
    value = value[..., None, :, :]
    if signed:
        return (value.abs() - shift[..., None]).relu_().mul_(value.sign()).sum(-2)
    return (value - shift[..., None]).relu_().sum(-2)


class _Block(NamedTuple):
    """One block of queries `(B, H, m, d)` and what its scores are made of, `(B, H, m, N)`; the scores before their relu."""

    query: Tensor
    visible: Tensor | None
    distance: Tensor
    scores: Tensor


def _score_block(
    query: Tensor, key: Tensor, alpha: Tensor, gamma: Tensor, masks: KeyMasks, centered: bool, rows: slice
) -> _Block:
    visible = masks.visible(query.shape[-2], key.shape[-2], query.device, rows)
    block = query[..., rows, :]
    distance = _centered_distances(block, key, visible, centered)
    return _Block(block, visible, distance, gamma * query.shape[-1] ** -0.5 * distance + alpha)


def _score_gradients(
    block: _Block, key: Tensor, alpha: Tensor, gamma: Tensor, centered: bool, grad_z: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients through a block's Z: of its queries, of key, alpha and gamma."""
    root = key.shape[-1] ** -0.5
    # Through the relu, then the scalars, then the centring.
    grad_s = torch.where(block.scores > 0, grad_z, 0.0)
    if block.visible is not None:
        grad_s = grad_s.masked_fill(~block.visible, 0)
    grad_alpha = grad_s.sum_to_size(alpha.shape)
    grad_gamma = root * (grad_s * block.distance).sum_to_size(gamma.shape)
    if centered:
        grad_s = grad_s - _row_mean(grad_s, block.visible)
        if block.visible is not None:
            grad_s = grad_s.masked_fill(~block.visible, 0)
    # Distances: sign(0) = 0, so a query next to its own duplicate gets nothing from it.
    direction = (block.query[..., :, None, :] - key[..., None, :, :]).sign_()
    direction = direction * (gamma * root * grad_s)[..., None]
    return direction.sum(-2), -direction.sum(-3), grad_alpha, grad_gamma


def _shift(scores: Tensor, aggregated: Tensor | None) -> Tensor:
    """What a value must exceed to pass, from scores before or after their relu; nothing exceeds it at a removed key."""
    shift = scores.relu()
    return shift if aggregated is None else shift.masked_fill_(~aggregated, torch.inf)


def _inhibition_gradients(
    value: Tensor, shift: Tensor, beta: Tensor, grad_output: Tensor, signed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients through a block's `beta * _inhibit(value, shift, signed)`: of value, of the shift and of beta."""
    grad_beta = (grad_output * _inhibit(value, shift, signed)).sum_to_size(beta.shape)
    # Each value takes the gradient of the queries that let it pass.
    passed = (value.abs() if signed else value)[..., None, :, :] > shift[..., None]
    passed = torch.where(passed, (beta * grad_output)[..., :, None, :], 0.0)
    grad_shift = -(passed * value.sign()[..., None, :, :] if signed else passed).sum(-1)
    return passed.sum(-3), grad_shift, grad_beta


class _InhibitorAttention(torch.autograd.Function):
    """The output alone: the scores exist one block at a time and are computed anew for the gradients."""

    @staticmethod
    def forward(ctx, query, key, value, alpha, beta, gamma, masks: KeyMasks, centered, signed):
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        for rows in _query_blocks(query, key):
            block = _score_block(query, key, alpha, gamma, masks, centered, rows)
            output[..., rows, :] = beta * _inhibit(value, _shift(block.scores, masks.aggregated(block.visible)), signed)
        ctx.save_for_backward(query, key, value, alpha, beta, gamma, masks.padding, masks.dropout, masks.attention)
        ctx.causal, ctx.centered, ctx.signed = masks.causal, centered, signed
        return output

    @staticmethod
    def backward(ctx, grad_output):
        saved = ctx.saved_tensors  # read once: checkpointing recomputes them for one reading
        with torch.no_grad():
            gradients = _InhibitorAttention._gradients(ctx, saved, grad_output)
        return *first_order_only(gradients, *saved[:6], grad_output), None, None, None

    @staticmethod
    def _gradients(ctx, saved, grad_output):
        query, key, value, alpha, beta, gamma, padding, dropout, attention = saved
        masks = KeyMasks(padding, dropout, attention, ctx.causal)
        grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        grad_alpha, grad_beta, grad_gamma = (torch.zeros_like(scalar) for scalar in (alpha, beta, gamma))
        for rows in _query_blocks(query, key):
            block = _score_block(query, key, alpha, gamma, masks, ctx.centered, rows)
            shift = _shift(block.scores, masks.aggregated(block.visible))
            of_value, grad_z, of_beta = _inhibition_gradients(value, shift, beta, grad_output[..., rows, :], ctx.signed)
            of_query, of_key, of_alpha, of_gamma = _score_gradients(block, key, alpha, gamma, ctx.centered, grad_z)
            grad_query[..., rows, :] = of_query
            grad_key += of_key
            grad_value += of_value
            grad_alpha += of_alpha
            grad_beta += of_beta
            grad_gamma += of_gamma
        return grad_query, grad_key, grad_value, grad_alpha, grad_beta, grad_gamma


class _Scores(torch.autograd.Function):
    """Z `(B, H, M, N)`, 0 at invisible keys."""

    @staticmethod
    def forward(ctx, query, key, alpha, gamma, masks: KeyMasks, centered):
        z = query.new_empty((*query.shape[:-1], key.shape[-2]))
        for rows in _query_blocks(query, key):
            block = _score_block(query, key, alpha, gamma, masks, centered, rows)
            scores = block.scores.relu()
            z[..., rows, :] = scores if block.visible is None else scores.masked_fill(~block.visible, 0)
        ctx.save_for_backward(query, key, alpha, gamma, masks.padding, masks.dropout, masks.attention)
        ctx.causal, ctx.centered = masks.causal, centered
        return z

    @staticmethod
    def backward(ctx, grad_z):
        saved = ctx.saved_tensors  # read once: checkpointing recomputes them for one reading
        with torch.no_grad():
            gradients = _Scores._gradients(ctx, saved, grad_z)
        return *first_order_only(gradients, *saved[:4], grad_z), None, None

    @staticmethod
    def _gradients(ctx, saved, grad_z):
        query, key, alpha, gamma, padding, dropout, attention = saved
        masks = KeyMasks(padding, dropout, attention, ctx.causal)
        grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        grad_key, grad_alpha, grad_gamma = (torch.zeros_like(tensor) for tensor in (key, alpha, gamma))
        for rows in _query_blocks(query, key):
            block = _score_block(query, key, alpha, gamma, masks, ctx.centered, rows)
            of_query, of_key, of_alpha, of_gamma = _score_gradients(
                block, key, alpha, gamma, ctx.centered, grad_z[..., rows, :]
            )
            grad_query[..., rows, :] = of_query
            grad_key += of_key
            grad_alpha += of_alpha
            grad_gamma += of_gamma
        return grad_query, grad_key, grad_alpha, grad_gamma


class _Inhibition(torch.autograd.Function):
    """The output `(B, H, M, d)` from Z `(B, H, M, N)`, which the caller has in memory anyway."""

    @staticmethod
    def forward(ctx, value, z, beta, masks: KeyMasks, signed):
        output = value.new_empty((*z.shape[:-1], value.shape[-1]))
        for rows in _query_blocks(output, value):
            shift = _shift(z[..., rows, :], _aggregated(masks, z, rows))
            output[..., rows, :] = beta * _inhibit(value, shift, signed)
        ctx.save_for_backward(value, z, beta, masks.padding, masks.dropout, masks.attention)
        ctx.causal, ctx.signed = masks.causal, signed
        return output

    @staticmethod
    def backward(ctx, grad_output):
        saved = ctx.saved_tensors  # read once: checkpointing recomputes them for one reading
        with torch.no_grad():
            gradients = _Inhibition._gradients(ctx, saved, grad_output)
        return *first_order_only(gradients, *saved[:3], grad_output), None, None

    @staticmethod
    def _gradients(ctx, saved, grad_output):
        value, z, beta, padding, dropout, attention = saved
        masks = KeyMasks(padding, dropout, attention, ctx.causal)
        grad_z = torch.empty_like(z, memory_format=torch.contiguous_format)
        grad_value, grad_beta = torch.zeros_like(value), torch.zeros_like(beta)
        for rows in _query_blocks(grad_output, value):
            shift = _shift(z[..., rows, :], _aggregated(masks, z, rows))
            of_value, of_z, of_beta = _inhibition_gradients(value, shift, beta, grad_output[..., rows, :], ctx.signed)
            grad_z[..., rows, :] = of_z
            grad_value += of_value
            grad_beta += of_beta
        return grad_value, grad_z, grad_beta


def _aggregated(masks: KeyMasks, z: Tensor, rows: slice) -> Tensor | None:
    return masks.aggregated(masks.visible(z.shape[-2], z.shape[-1], z.device, rows))


def first_order_only(gradients: tuple[Tensor, ...], *inputs: Tensor) -> tuple[Tensor, ...]:
    """With create_graph=True, what was computed from `inputs` without a graph must not pass for a constant."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _RefuseSecondDerivative.apply(len(gradients), *gradients, *inputs)
    return gradients


class _RefuseSecondDerivative(torch.autograd.Function):
    """Hands `count` gradients on, tied to what they were computed from, so that differentiating them raises."""

    @staticmethod
    def forward(ctx, count, *gradients_and_inputs):
        return tuple(gradient.view_as(gradient) for gradient in gradients_and_inputs[:count])

    @staticmethod
    def backward(ctx, *grad_outputs):
        raise RuntimeError('inhibitor_attention has no second derivative in its fast forms; use backend="naive" for one.')


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

    Shapes and meaning as in `naive_inhibitor_attention`; the scores Z are computed in full only with `return_scores`, and
    the output is then computed from them, so that it has a gradient with respect to them. Differentiating its gradients
    raises RuntimeError.
    """
    if masks.padding is not None:
        # Whatever stands at a padded position must not reach the result: 0 * nan is nan.
        padded = ~masks.padding[:, None, :, None]
        key, value = key.masked_fill(padded, 0), value.masked_fill(padded, 0)
    if not return_scores:
        return _InhibitorAttention.apply(query, key, value, alpha, beta, gamma, masks, centered, signed), None
    z = _Scores.apply(query, key, alpha, gamma, masks, centered)
    return _Inhibition.apply(value, z, beta, masks, signed), z
