"""Inhibitor attention in plain torch, blocked over queries: the backend that runs everywhere.

Forward and backward hold one block of queries at a time, O(B·H·block·N·d) beyond inputs and outputs. Nothing of size
M x N is kept for the backward pass, which recomputes the scores; where the scores are asked for, those alone are kept.
Under torch.compile and torch.export there is one block only: the compiler fuses the broadcasts into reductions, and a
loop whose length depends on the sequence would be compiled anew for every length.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .masks import KeyMasks

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
    """Mean of each row over its visible keys, 0 for a row without any; `x` is 0 at the others."""
    if visible is None:
        return x.mean(-1, keepdim=True)
    return x.sum(-1, keepdim=True) / visible.sum(-1, keepdim=True).clamp(min=1)


def _only_visible(x: Tensor, visible: Tensor | None) -> Tensor:
    """0 at invisible keys, whatever stood there: 0 * nan is nan."""
    return x if visible is None else x.masked_fill(~visible, 0)


def _excess(value: Tensor, shift: Tensor, removed: Tensor | None, signed: bool) -> Tensor:
    """By how much values exceed the shift: `(B, H, N, d)`, `(B, H, m, N)` -> `(B, H, m, N, d)`, 0 where it is removed."""
    excess = (value.abs() if signed else value)[..., None, :, :] - shift[..., None]
    return excess if removed is None else excess.masked_fill_(removed[..., None], 0)


def _inhibit(value: Tensor, excess: Tensor, signed: bool) -> Tensor:
    """Sum over the keys of what passes: `(B, H, N, d)`, `(B, H, m, N, d)`, overwritten -> `(B, H, m, d)`.

    Signed inhibition is soft-thresholding, since Z >= 0. The sign is a factor because ONNX has no copysign.
    """
    passed = excess.relu_()
    return (passed.mul_(value.sign()[..., None, :, :]) if signed else passed).sum(-2)


class _Block(NamedTuple):
    """One block of queries `(B, H, m, d)` and what its scores, before their relu, are made of: the distances `(B, H, m, N)`,
    0 at invisible keys, and where centred their means `(B, H, m, 1)`."""

    query: Tensor
    visible: Tensor | None
    distance: Tensor
    mean: Tensor | None
    scores: Tensor


def _score_block(
    query: Tensor, key: Tensor, alpha: Tensor, gamma: Tensor, masks: KeyMasks, centered: bool, rows: slice
) -> _Block:
    visible = masks.visible(query.shape[-2], key.shape[-2], query.device, rows)
    block = query[..., rows, :]
    distance = _only_visible(_distances(block, key), visible)
    scale = gamma * query.shape[-1] ** -0.5
    if not centered:
        return _Block(block, visible, distance, None, scale * distance + alpha)
    mean = _row_mean(distance, visible)
    # The scores are linear in the distances, so centring these centres those; but no infinite scale has a centred score.
    return _Block(block, visible, distance, mean, scale * (distance - mean) + (alpha + 0 * gamma))


def _score_gradients(
    block: _Block, key: Tensor, alpha: Tensor, gamma: Tensor, grad_z: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients through a block's Z: of its queries, of key, alpha and gamma."""
    root, visible, distance, mean = key.shape[-1] ** -0.5, block.visible, block.distance, block.mean
    scale = gamma * root
    # Through the relu, which passes a gradient on at NaN, then the scalars, then the centring.
    grad_s = _only_visible(torch.where(block.scores <= 0, 0.0, grad_z), visible)
    grad_alpha = grad_s.sum_to_size(alpha.shape)
    grad_gamma = (grad_s * distance).sum_to_size(gamma.shape)
    grad_distance = scale * grad_s
    if mean is not None:
        # The exact form, but for what is not finite: there the parts it is made of count.
        grad_gamma = grad_gamma - (grad_s.sum(-1, keepdim=True) * mean).sum_to_size(gamma.shape)
        deviation = _only_visible(distance - mean, visible)
        grad_gamma = torch.where(grad_gamma.isfinite(), (grad_s * deviation).sum_to_size(gamma.shape), grad_gamma)
        grad_distance = grad_distance - scale * _row_mean(grad_s, visible)
    # Distances: sign(0) = 0, so a query next to its own duplicate gets nothing from it; and sign(nan) = 0.
    direction = (block.query[..., :, None, :] - key[..., None, :, :]).sign_()
    direction = direction * _only_visible(grad_distance, visible)[..., None]
    return direction.sum(-2), -direction.sum(-3), grad_alpha, root * grad_gamma


class _Keys(NamedTuple):
    """What a block's values must exceed, `(B, H, m, N)`, and at which keys not even NaN or infinity does, None where that is
    no question."""

    shift: Tensor
    removed: Tensor | None


def _keys(scores: Tensor, visible: Tensor | None, masks: KeyMasks, wild: bool) -> _Keys:
    """From scores before or after their relu; `wild`: whether a value that only some queries see may not be finite."""
    shift, aggregated = scores.relu(), masks.aggregated(visible)
    if aggregated is None:
        return _Keys(shift, None)
    removed = ~aggregated
    return _Keys(shift.masked_fill_(removed, torch.inf), removed if wild else None)


def _maybe_wild(value: Tensor, masks: KeyMasks) -> bool:
    """See `_keys`. Values that key masks take out are 0. A look at the others must not break a trace, or wait for a GPU."""
    if not masks.causal and masks.attention is None:
        return False
    traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or type(value) is not Tensor
    return traced or value.device.type != "cpu" or not value.isfinite().all().item()


def _inhibition_gradients(
    value: Tensor, keys: _Keys, beta: Tensor, grad_output: Tensor, signed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients through a block's `beta * _inhibit(value, …, signed)`: of value, of the shift and of beta."""
    excess = _excess(value, *keys, signed)
    grad = (beta * grad_output)[..., :, None, :]
    sign = value.sign() if signed else None
    # Each value takes the gradient of the queries that let it pass, and at NaN too, as relu does.
    passed = torch.where(excess <= 0, 0.0, grad if sign is None else grad * sign[..., None, :, :])
    grad_beta = (grad_output * _inhibit(value, excess, signed)).sum_to_size(beta.shape)
    of_value = passed.sum(-3)
    return of_value if sign is None else of_value * sign, -passed.sum(-1), grad_beta


def _output(query, key, value, alpha, beta, gamma, masks: KeyMasks, centered: bool, signed: bool) -> Tensor:
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    wild = _maybe_wild(value, masks)
    for rows in _query_blocks(query, key):
        block = _score_block(query, key, alpha, gamma, masks, centered, rows)
        excess = _excess(value, *_keys(block.scores, block.visible, masks, wild), signed)
        output[..., rows, :] = beta * _inhibit(value, excess, signed)
    return output


def _gradients(
    query, key, value, alpha, beta, gamma, masks: KeyMasks, centered: bool, signed: bool, grad_output: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of `_output`'s six inputs."""
    grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
    grad_alpha, grad_beta, grad_gamma = (torch.zeros_like(scalar) for scalar in (alpha, beta, gamma))
    wild = _maybe_wild(value, masks)
    for rows in _query_blocks(query, key):
        block = _score_block(query, key, alpha, gamma, masks, centered, rows)
        keys = _keys(block.scores, block.visible, masks, wild)
        of_value, grad_z, of_beta = _inhibition_gradients(value, keys, beta, grad_output[..., rows, :], signed)
        of_query, of_key, of_alpha, of_gamma = _score_gradients(block, key, alpha, gamma, grad_z)
        grad_query[..., rows, :] = of_query
        grad_key += of_key
        grad_value += of_value
        grad_alpha += of_alpha
        grad_beta += of_beta
        grad_gamma += of_gamma
    return grad_query, grad_key, grad_value, grad_alpha, grad_beta, grad_gamma


class _InhibitorAttention(torch.autograd.Function):
    """The output alone: the scores exist one block at a time and are computed anew for the gradients."""

    @staticmethod
    def forward(ctx, query, key, value, alpha, beta, gamma, masks: KeyMasks, centered, signed):
        ctx.save_for_backward(query, key, value, alpha, beta, gamma, masks.padding, masks.dropout, masks.attention)
        ctx.causal, ctx.centered, ctx.signed = masks.causal, centered, signed
        return _output(query, key, value, alpha, beta, gamma, masks, centered, signed)

    @staticmethod
    def backward(ctx, grad_output):
        saved = ctx.saved_tensors  # read once: checkpointing recomputes them for one reading
        query, key, value, alpha, beta, gamma, padding, dropout, attention = saved
        masks = KeyMasks(padding, dropout, attention, ctx.causal)
        with torch.no_grad():
            gradients = _gradients(
                query, key, value, alpha, beta, gamma, masks, ctx.centered, ctx.signed, grad_output
            )  # fmt: skip
        return *first_order_only(gradients, *saved[:6], grad_output), None, None, None


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
            of_query, of_key, of_alpha, of_gamma = _score_gradients(block, key, alpha, gamma, grad_z[..., rows, :])
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
        wild = _maybe_wild(value, masks)
        for rows in _query_blocks(output, value):
            keys = _keys(z[..., rows, :], _visible(masks, z, rows), masks, wild)
            output[..., rows, :] = beta * _inhibit(value, _excess(value, *keys, signed), signed)
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
        wild = _maybe_wild(value, masks)
        for rows in _query_blocks(grad_output, value):
            keys = _keys(z[..., rows, :], _visible(masks, z, rows), masks, wild)
            of_value, of_z, of_beta = _inhibition_gradients(value, keys, beta, grad_output[..., rows, :], ctx.signed)
            grad_z[..., rows, :] = of_z
            grad_value += of_value
            grad_beta += of_beta
        return grad_value, grad_z, grad_beta


def _visible(masks: KeyMasks, z: Tensor, rows: slice) -> Tensor | None:
    return masks.visible(z.shape[-2], z.shape[-1], z.device, rows)


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


def without_hidden(key: Tensor, value: Tensor, masks: KeyMasks) -> tuple[Tensor, Tensor]:
    """Key and value, 0 where key masks take them out: whatever stands there must not reach the result."""
    if masks.padding is not None:
        padded = ~masks.padding[:, None, :, None]
        key, value = key.masked_fill(padded, 0), value.masked_fill(padded, 0)
    if masks.dropout is not None:
        value = value.masked_fill(~masks.dropout[:, None, :, None], 0)
    return key, value


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
    key, value = without_hidden(key, value, masks)
    if not return_scores:
        return _InhibitorAttention.apply(query, key, value, alpha, beta, gamma, masks, centered, signed), None
    z = _Scores.apply(query, key, alpha, gamma, masks, centered)
    return _Inhibition.apply(value, z, beta, masks, signed), z


# For compiled backends, whose arguments `register_backend` describes: calls in which something is not finite.


def torch_forward(query, key, value, padding, dropout, alpha, beta, gamma, centered, signed, causal) -> Tensor:
    """The output, float32."""
    masks = KeyMasks(padding, dropout, None, causal)
    key, value = without_hidden(key.float(), value.float(), masks)
    alpha, beta, gamma = (scalar.view(1, -1, 1, 1) for scalar in (alpha, beta, gamma))
    return _output(query.float(), key, value, alpha, beta, gamma, masks, centered, signed)


def torch_backward(
    grad_output, query, key, value, padding, dropout, alpha, beta, gamma, centered, signed, causal
) -> tuple[Tensor, ...]:
    """The gradients of query, key, value, alpha, beta and gamma, float32."""
    masks = KeyMasks(padding, dropout, None, causal)
    key, value = without_hidden(key.float(), value.float(), masks)
    alpha, beta, gamma = (scalar.view(1, -1, 1, 1) for scalar in (alpha, beta, gamma))
    gradients = _gradients(
        query.float(), key, value, alpha, beta, gamma, masks, centered, signed, grad_output.float()
    )  # fmt: skip
    return *gradients[:3], *(gradient.view(-1) for gradient in gradients[3:])
