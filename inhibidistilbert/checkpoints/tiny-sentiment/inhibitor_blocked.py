"""Inhibitor attention in plain torch, blocked over queries: the backend that runs everywhere.

Forward and backward hold one block of queries at a time, O(B·H·block·N·d) beyond inputs and outputs. Nothing of size
M x N is kept for the backward pass, which recomputes the scores; where the scores are asked for, those alone are kept.
Under torch.compile and torch.export there is one block only: the compiler fuses the broadcasts into reductions, and a
loop whose length depends on the sequence would be compiled anew for every length.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .inhibitor_forms import NOTHING_PASSES, Form, nearest_key
from .inhibitor_masks import KeyMasks
from .inhibitor_scanned import for_onnx, scanned_distances, scanned_inhibition

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
    if for_onnx():
        return scanned_distances(query, key)
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


def _excess(value: Tensor, shift: Tensor, removed: Tensor | None, form: Form) -> Tensor:
    """By how much values exceed the shift: `(B, H, N, d)`, `(B, H, m, N)` -> `(B, H, m, N, d)`, 0 where it is removed.

    With a gate half their magnitude must exceed it, where it is below 0 too.
    """
    size = value.abs() / 2 if form.gate else value.abs() if form.signed else value
    excess = size[..., None, :, :] - shift[..., None]
    return excess if removed is None else excess.masked_fill_(removed[..., None], 0)


def _inhibit(value: Tensor, excess: Tensor, form: Form) -> Tensor:
    """Sum over the keys of what passes: `(B, H, N, d)`, `(B, H, m, N, d)`, overwritten -> `(B, H, m, d)`.

    Signed inhibition is soft-thresholding, since Z >= 0. The sign is a factor because ONNX has no copysign.
    """
    passed = excess.relu_()
    if form.gate:
        size = value.abs()[..., None, :, :]
        passed = torch.where(passed > size, size, passed)  # a minimum would take NaN from values that are not seen
    return (passed.mul_(value.sign()[..., None, :, :]) if form.signed else passed).sum(-2)


class _Block(NamedTuple):
    """One block of queries `(B, H, m, d)` and their distances to the keys `(B, H, m, N)`, 0 at invisible ones; where they
    are centred, what is subtracted from them `(B, H, m, 1)`."""

    query: Tensor
    visible: Tensor | None
    distance: Tensor
    center: Tensor | None

    def scores(self, alpha: Tensor, gamma: Tensor) -> Tensor:
        """Before their relu, `(B, H, m, N)`, for the scalars `(1 or H, 1, 1)` of one radius."""
        scale = gamma * self.query.shape[-1] ** -0.5
        if self.center is None:
            return scale * self.distance + alpha
        # The scores are linear in the distances, so centring these centres those; but no infinite scale has a centred score.
        return scale * (self.distance - self.center) + (alpha + 0 * gamma)


def _block(query: Tensor, key: Tensor, masks: KeyMasks, form: Form, rows: slice) -> _Block:
    visible = masks.visible(query.shape[-2], key.shape[-2], query.device, rows)
    block = query[..., rows, :]
    distance = _only_visible(_distances(block, key), visible)
    center = None
    if form.center == "mean":
        center = _row_mean(distance, visible)
    elif form.center == "least" and key.shape[-2]:
        center = distance.gather(-1, nearest_key(distance, visible))
    return _Block(block, visible, distance, center)


def _score_gradients(
    block: _Block, key: Tensor, alpha: Tensor, gamma: Tensor, form: Form, shifts: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients through a block's shifts, one for each radius: of its queries, of key, alpha and gamma."""
    root, visible, distance, center = key.shape[-1] ** -0.5, block.visible, block.distance, block.center
    grad_alpha, grad_gamma = torch.empty_like(alpha), torch.empty_like(gamma)
    grad_distance = torch.zeros_like(distance)
    nearest = nearest_key(distance, visible) if form.center == "least" and center is not None else None
    for radius, (shift, grad) in enumerate(zip(shifts, grads, strict=True)):
        # Through the relu, which passes a gradient on at NaN, then the scalars, then the centring.
        grad_s = _only_visible(grad if form.gate else torch.where(shift <= 0, 0.0, grad), visible)
        shape = gamma.shape[1:]
        of_gamma = (grad_s * distance).sum_to_size(shape)
        if center is not None:
            # The exact form, but for what is not finite: there the parts it is made of count.
            of_gamma = of_gamma - (grad_s.sum(-1, keepdim=True) * center).sum_to_size(shape)
            deviation = _only_visible(distance - center, visible)
            of_gamma = torch.where(of_gamma.isfinite(), (grad_s * deviation).sum_to_size(shape), of_gamma)
        grad_alpha[radius], grad_gamma[radius] = grad_s.sum_to_size(alpha.shape[1:]), root * of_gamma
        scale = gamma[radius] * root
        grad_distance = grad_distance + scale * grad_s
        if form.center == "mean":
            grad_distance = grad_distance - scale * _row_mean(grad_s, visible)
        elif nearest is not None:
            grad_distance = grad_distance.scatter_add(-1, nearest, -scale * grad_s.sum(-1, keepdim=True))
    # Distances: sign(0) = 0, so a query next to its own duplicate gets nothing from it; and sign(nan) = 0.
    direction = (block.query[..., :, None, :] - key[..., None, :, :]).sign_()
    direction = direction * _only_visible(grad_distance, visible)[..., None]
    return direction.sum(-2), -direction.sum(-3), grad_alpha, grad_gamma


class _Keys(NamedTuple):
    """What a block's values must exceed, `(B, H, m, N)`, and at which keys not even NaN or infinity does, None where that is
    no question."""

    shift: Tensor
    removed: Tensor | None


def _keys(shift: Tensor, visible: Tensor | None, masks: KeyMasks, wild: bool) -> _Keys:
    """`wild`: whether a value that only some queries see may not be finite."""
    aggregated = masks.aggregated(visible)
    if aggregated is None:
        return _Keys(shift, None)
    removed = ~aggregated
    return _Keys(shift.masked_fill(removed, torch.inf), removed if wild else None)


def _maybe_wild(value: Tensor, masks: KeyMasks) -> bool:
    """See `_keys`. Values that key masks take out are 0. A look at the others must not break a trace, or wait for a GPU."""
    if not masks.causal and masks.attention is None:
        return False
    traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or type(value) is not Tensor
    return traced or value.device.type != "cpu" or not value.isfinite().all().item()


def _passed(value: Tensor, keys: _Keys, form: Form) -> Tensor:
    """Sum over the keys of what passes in a block, `(B, H, m, d)`."""
    if for_onnx() and keys.removed is None:
        return scanned_inhibition(value, keys.shift, form)
    return _inhibit(value, _excess(value, *keys, form), form)


def _inhibition_gradients(
    value: Tensor, keys: _Keys, scale: Tensor, grad_output: Tensor, form: Form
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients through a block's `scale * _inhibit(value, …, form)`: of value, of the shift and of the scale."""
    excess = _excess(value, *keys, form)
    grad = (scale * grad_output)[..., :, None, :]
    sign = value.sign() if form.signed else None
    # Each value takes the gradient of the queries that let it pass, and at NaN too, as relu does.
    passed = torch.where(excess <= 0, 0.0, grad if sign is None else grad * sign[..., None, :, :])
    if form.gate:
        # A value gets half of it while its gate opens, and all of it once the gate is open: then the shift counts no more.
        is_open = (excess >= value.abs()[..., None, :, :]) & (excess > 0)
        half = torch.where(excess <= 0, 0.0, grad / 2)
        of_value, passed = torch.where(is_open, grad, half).sum(-3), torch.where(is_open, 0.0, passed)
    else:
        of_value = passed.sum(-3) if sign is None else passed.sum(-3) * sign
    of_shift = -passed.sum(-1)
    of_scale = (grad_output * _inhibit(value, excess, form)).sum_to_size(scale.shape)
    return of_value, of_shift, of_scale


def _opened(shift: Tensor, delta: Tensor, visible: Tensor | None, form: Form) -> Tensor:
    """How much passes of a constant, summed over the keys that each query sees: `(B, H, m, N)` -> `(B, H, m, 1)`."""
    return _only_visible(form.opening(shift, delta), visible).sum(-1, keepdim=True)


def _opening_gradients(
    shift: Tensor, delta: Tensor, visible: Tensor | None, grad_opened: Tensor, form: Form
) -> tuple[Tensor, Tensor]:
    """Gradients through `_opened`: of the shift and of delta."""
    ramp = form.ramp(shift, delta)
    # At NaN a clamp passes nothing on, a relu does.
    still = ~((ramp >= 0) & (ramp <= 1)) if form.gate else ramp <= 0
    grad = _only_visible(torch.where(still, 0.0, -grad_opened), visible)
    return delta * grad, (_only_visible(shift, visible) * grad).sum_to_size(delta.shape)


def _outputs(
    query, key, value, alpha, beta, gamma, delta: Tensor | None, masks: KeyMasks, form: Form
) -> tuple[Tensor, Tensor | None]:
    """What passes, summed over the keys, `(B, H, M, d)`, and what it is divided by, `(B, H, M, 1)`, where it is."""
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    opened = None if delta is None else query.new_empty((*query.shape[:-1], 1))
    wild = _maybe_wild(value, masks)
    for rows in _query_blocks(query, key):
        block = _block(query, key, masks, form, rows)
        total = block.query.new_zeros(())
        for radius, (alpha_r, beta_r, gamma_r) in enumerate(zip(alpha, beta, gamma, strict=True)):
            shift = form.shift(block.scores(alpha_r, gamma_r))
            passed = _passed(value, _keys(shift, block.visible, masks, wild), form)
            total = passed if radius == 0 else total + beta_r * passed
            if delta is not None and opened is not None:
                now = _opened(shift, delta, block.visible, form)
                opened[..., rows, :] = now if radius == 0 else opened[..., rows, :] + beta_r.abs() * now
        output[..., rows, :] = beta[0] * total
    return output, None if opened is None else opened + NOTHING_PASSES


def _gradients(
    query, key, value, alpha, beta, gamma, delta: Tensor | None, masks: KeyMasks, form: Form, grad_output, grad_opened
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """The gradients of `_outputs`' first six inputs, and of delta."""
    grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
    grad_alpha, grad_beta, grad_gamma = (torch.zeros_like(scalar) for scalar in (alpha, beta, gamma))
    grad_delta = None if delta is None else torch.zeros_like(delta)
    wild = _maybe_wild(value, masks)
    for rows in _query_blocks(query, key):
        block = _block(query, key, masks, form, rows)
        shifts = [form.shift(block.scores(*scalars)) for scalars in zip(alpha, gamma, strict=True)]
        grads = []
        for radius, shift in enumerate(shifts):
            keys = _keys(shift, block.visible, masks, wild)
            scale = beta[0] if radius == 0 else beta[0] * beta[radius]
            of_value, of_shift, of_scale = _inhibition_gradients(value, keys, scale, grad_output[..., rows, :], form)
            grad_value += of_value
            grad_beta[0] += of_scale if radius == 0 else beta[radius] * of_scale
            if radius:
                grad_beta[radius] += beta[0] * of_scale
            if delta is not None and grad_delta is not None:
                grad = grad_opened[..., rows, :]
                if radius:
                    opened = (grad * _opened(shift, delta, block.visible, form)).sum_to_size(beta.shape[1:])
                    grad_beta[radius] += beta[radius].sign() * opened
                    grad = beta[radius].abs() * grad
                through, of_delta = _opening_gradients(shift, delta, block.visible, grad, form)
                of_shift = of_shift + through
                grad_delta += of_delta
            grads.append(of_shift)
        of_query, of_key, of_alpha, of_gamma = _score_gradients(block, key, alpha, gamma, form, shifts, grads)
        grad_query[..., rows, :] = of_query
        grad_key += of_key
        grad_alpha += of_alpha
        grad_gamma += of_gamma
    return (grad_query, grad_key, grad_value, grad_alpha, grad_beta, grad_gamma), grad_delta


class _InhibitorAttention(torch.autograd.Function):
    """`_outputs`: the scores exist one block at a time and are computed anew for the gradients."""

    @staticmethod
    def forward(ctx, query, key, value, alpha, beta, gamma, delta, masks: KeyMasks, form: Form):
        ctx.save_for_backward(query, key, value, alpha, beta, gamma, delta, masks.padding, masks.dropout, masks.attention)
        ctx.causal, ctx.form = masks.causal, form
        return _outputs(query, key, value, alpha, beta, gamma, delta, masks, form)

    @staticmethod
    def backward(ctx, grad_output, grad_opened):
        saved = ctx.saved_tensors  # read once: checkpointing recomputes them for one reading
        query, key, value, alpha, beta, gamma, delta, padding, dropout, attention = saved
        masks = KeyMasks(padding, dropout, attention, ctx.causal)
        with torch.no_grad():
            gradients, of_delta = _gradients(
                query, key, value, alpha, beta, gamma, delta, masks, ctx.form, grad_output, grad_opened
            )  # fmt: skip
        return *first_order_only((*gradients, of_delta), *saved[:7], grad_output, grad_opened), None, None


class _Shift(torch.autograd.Function):
    """What inhibits, Z `(B, H, M, N)`, for the scalars `(1, 1 or H, 1, 1)` of one radius; 0 at invisible keys."""

    @staticmethod
    def forward(ctx, query, key, alpha, gamma, masks: KeyMasks, form: Form):
        z = query.new_empty((*query.shape[:-1], key.shape[-2]))
        for rows in _query_blocks(query, key):
            block = _block(query, key, masks, form, rows)
            z[..., rows, :] = _only_visible(form.shift(block.scores(alpha[0], gamma[0])), block.visible)
        ctx.save_for_backward(query, key, alpha, gamma, masks.padding, masks.dropout, masks.attention)
        ctx.causal, ctx.form = masks.causal, form
        return z

    @staticmethod
    def backward(ctx, grad_z):
        saved = ctx.saved_tensors  # read once: checkpointing recomputes them for one reading
        with torch.no_grad():
            gradients = _Shift._gradients(ctx, saved, grad_z)
        return *first_order_only(gradients, *saved[:4], grad_z), None, None

    @staticmethod
    def _gradients(ctx, saved, grad_z):
        query, key, alpha, gamma, padding, dropout, attention = saved
        masks = KeyMasks(padding, dropout, attention, ctx.causal)
        grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        grad_key, grad_alpha, grad_gamma = (torch.zeros_like(tensor) for tensor in (key, alpha, gamma))
        for rows in _query_blocks(query, key):
            block = _block(query, key, masks, ctx.form, rows)
            shift, grad = ctx.form.shift(block.scores(alpha[0], gamma[0])), grad_z[..., rows, :]
            of_query, of_key, of_alpha, of_gamma = _score_gradients(block, key, alpha, gamma, ctx.form, [shift], [grad])
            grad_query[..., rows, :] = of_query
            grad_key += of_key
            grad_alpha += of_alpha
            grad_gamma += of_gamma
        return grad_query, grad_key, grad_alpha, grad_gamma


class _Inhibition(torch.autograd.Function):
    """What passes, `(B, H, M, d)`, from Z `(B, H, M, N)`, which the caller has in memory anyway; beta `(1 or H, 1, 1)`."""

    @staticmethod
    def forward(ctx, value, z, beta, masks: KeyMasks, form: Form):
        output = value.new_empty((*z.shape[:-1], value.shape[-1]))
        wild = _maybe_wild(value, masks)
        for rows in _query_blocks(output, value):
            keys = _keys(z[..., rows, :], _visible(masks, z, rows), masks, wild)
            output[..., rows, :] = beta * _passed(value, keys, form)
        ctx.save_for_backward(value, z, beta, masks.padding, masks.dropout, masks.attention)
        ctx.causal, ctx.form = masks.causal, form
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
            of_value, of_z, of_beta = _inhibition_gradients(value, keys, beta, grad_output[..., rows, :], ctx.form)
            grad_z[..., rows, :] = of_z
            grad_value += of_value
            grad_beta += of_beta
        return grad_value, grad_z, grad_beta


def _visible(masks: KeyMasks, z: Tensor, rows: slice) -> Tensor | None:
    return masks.visible(z.shape[-2], z.shape[-1], z.device, rows)


def first_order_only(gradients: tuple[Tensor | None, ...], *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
    """With create_graph=True, what was computed from `inputs` without a graph must not pass for a constant."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _RefuseSecondDerivative.apply(len(gradients), *gradients, *inputs)
    return gradients


class _RefuseSecondDerivative(torch.autograd.Function):
    """Hands `count` gradients on, tied to what they were computed from, so that differentiating them raises."""

    @staticmethod
    def forward(ctx, count, *gradients_and_inputs):
        return tuple(x if x is None else x.view_as(x) for x in gradients_and_inputs[:count])

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
    delta: Tensor | None,
    masks: KeyMasks,
    form: Form,
    return_scores: bool,
) -> tuple[Tensor, Tensor | None]:
    """Inhibitor attention with explicit gradients and O(B·H·block·N·d) extra memory.

    Shapes and meaning as in `naive_inhibitor_attention`; the scores Z are computed in full only with `return_scores`, and
    the output is then computed from them, so that it has a gradient with respect to them. Differentiating its gradients
    raises RuntimeError.
    """
    key, value = without_hidden(key, value, masks)
    if not return_scores:
        output, opened = _InhibitorAttention.apply(query, key, value, alpha, beta, gamma, delta, masks, form)
        return output if opened is None else output / opened, None
    shifts = [_Shift.apply(query, key, a[None], g[None], masks, form) for a, g in zip(alpha, gamma, strict=True)]
    output = _Inhibition.apply(value, shifts[0], beta[0], masks, form)
    for z, weight in zip(shifts[1:], beta[1:], strict=True):
        output = output + _Inhibition.apply(value, z, beta[0] * weight, masks, form)
    if delta is not None:
        visible = _visible(masks, shifts[0], slice(None))
        opened = _opened(shifts[0], delta, visible, form) + NOTHING_PASSES
        for z, weight in zip(shifts[1:], beta[1:], strict=True):
            opened = opened + weight.abs() * _opened(z, delta, visible, form)
        output = output / opened
    return output, shifts[0]


# For compiled backends, whose arguments `register_backend` describes: calls in which something is not finite.


def number_of_radii(alpha: Tensor, beta: Tensor, gamma: Tensor) -> int:
    return max([len(x) for x in (alpha, beta, gamma) if x.ndim == 2], default=1)


def per_radius(*scalars: Tensor) -> list[Tensor]:
    """Alpha, beta and gamma, `(1 or H,)` or `(R, 1 or H)`, as `(R, 1 or H, 1, 1)`."""
    radii = number_of_radii(*scalars)
    return [x.view(-1 if x.ndim == 2 else 1, x.shape[-1], 1, 1).expand(radii, -1, -1, -1) for x in scalars]


def torch_forward(
    query, key, value, padding, dropout, alpha, beta, gamma, delta, center: int, inhibition: int, causal: bool
) -> Tensor:
    """The output, float32."""
    inputs = _in_float32(query, key, value, padding, dropout, alpha, beta, gamma, delta, center, inhibition, causal)
    output, opened = _outputs(*inputs)
    return output if opened is None else output / opened


def torch_backward(
    grad_output, query, key, value, padding, dropout, alpha, beta, gamma, delta, center: int, inhibition: int, causal: bool
) -> tuple[Tensor, ...]:
    """The gradients of query, key, value, alpha, beta, gamma and, where there is one, delta, float32."""
    inputs = _in_float32(query, key, value, padding, dropout, alpha, beta, gamma, delta, center, inhibition, causal)
    grad_output, grad_opened = grad_output.float(), None
    output, opened = (None, None) if delta is None else _outputs(*inputs)
    if output is not None and opened is not None:
        grad_output = grad_output / opened
        grad_opened = -(grad_output * (output / opened)).sum(-1, keepdim=True)
    gradients, of_delta = _gradients(*(*inputs, grad_output, grad_opened))
    pairs = zip((*gradients[3:], of_delta), (alpha, beta, gamma, delta), strict=True)
    of_scalars = (gradient.flatten(1).sum_to_size(x.shape) for gradient, x in pairs if gradient is not None)
    return *gradients[:3], *of_scalars


def _in_float32(query, key, value, padding, dropout, alpha, beta, gamma, delta, center, inhibition, causal) -> Any:
    """The arguments of `_outputs`."""
    masks = KeyMasks(padding, dropout, None, causal)
    key, value = without_hidden(key.float(), value.float(), masks)
    scalars = *per_radius(alpha, beta, gamma), None if delta is None else delta.view(1, -1, 1, 1)
    return query.float(), key, value, *scalars, masks, Form.of_numbers(center, inhibition)
