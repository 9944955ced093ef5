"""A compiled backend as operators of torch: shapes for tracing, autograd, and one name for each version of the source.

A backend brings two functions, a forward and a backward launcher. What every backend needs alike is here: torch.compile,
gradient checkpointing, empty tensors, and the layout of what is returned.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .inhibitor_blocked import first_order_only
from .inhibitor_memory import has_tangent, untraced


def like_heads(x: Tensor) -> Tensor:
    """An uninitialised `(B, H, L, d)` in x's dtype, in memory `(B, L, H, d)`: what the projections read without a copy."""
    batch, heads, length, size = x.shape
    row = heads * size
    return x.new_empty_strided((batch, heads, length, size), (length * row, size, row, 1))


def op_namespace(module: str, file: str) -> str:
    """A namespace that only this copy of the source uses.

    The same backend can be in a process more than once, from this package and from checkpoints of other versions, and
    torch silently binds an operator's name to whoever registers it last.
    """
    return f"inhibitor_{hashlib.sha256(module.encode() + Path(file).read_bytes()).hexdigest()[:12]}"


def register_backend(namespace: str, forward: Callable, backward: Callable) -> Callable[..., Tensor]:
    """The differentiable operator of a backend.

    forward: `(query, key, value, padding, dropout, alpha, beta, gamma, delta, center, inhibition, causal, output,
        statistics)`, fills output, `(B, H, M, d)` in the dtype of query, and statistics, `(S, B, H, M)` float32, which the
        backward pass would else have to compute again: where centred what each query's distances are centred by, their
        mean over its visible keys or the least, and with the latter one that is the backend's, for which key it is; and
        with delta what its sum is divided by. S is how many of them there are.
    backward: `(grad_output, query, key, value, padding, dropout, alpha, beta, gamma, delta, output, statistics, center,
        inhibition, causal, grad_query, grad_key, grad_value)`, fills the last three, laid out as those of `like_heads`, and
        returns the gradients of alpha, beta, gamma and, where there is one, delta, float32. output is None without delta.

    query `(B, H, M, d)`, key and value `(B, H, N, d)` of one dtype, with any strides and never empty; padding and dropout
    `(B, N)` bool or None; alpha, beta, gamma `(1,)` or `(H,)` float32, of several radii also `(R, 1)` or `(R, H)`; delta as
    for one radius, or None. center and inhibition as `Form.numbers`: for the published forms, which alone come to a backend
    that does not say more in the table, whether it is centred and whether it is signed; delta is None then.

    Returns a function of the first twelve arguments that gives the output.
    """
    run_forward, forward_op = _register_forward(namespace, "forward", forward)

    def run_backward(
        grad_output: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None,
        dropout: Tensor | None,
        alpha: Tensor,
        beta: Tensor,
        gamma: Tensor,
        delta: Tensor | None,
        output: Tensor | None,
        statistics: Tensor,
        center: int,
        inhibition: int,
        causal: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        grad_query, grad_key, grad_value = (like_heads(x) for x in (query, key, value))
        if query.numel() == 0 or key.numel() == 0:
            for gradient in (grad_query, grad_key, grad_value):
                gradient.zero_()
            of_scalars: Any = [torch.zeros_like(scalar) for scalar in (alpha, beta, gamma, delta) if scalar is not None]
        else:
            inputs = (grad_output, query, key, value, padding, dropout, alpha, beta, gamma, delta, output, statistics)
            gradients = (grad_query, grad_key, grad_value)
            of_scalars = backward(*inputs, center, inhibition, causal, *gradients)
        grad_delta = torch.empty(0) if delta is None else of_scalars[3]  # an operator has no None to return
        return grad_query, grad_key, grad_value, of_scalars[0], of_scalars[1], of_scalars[2], grad_delta

    backward_op = torch.library.custom_op(f"{namespace}::backward", run_backward, mutates_args=())

    @backward_op.register_fake
    def _(
        grad_output, query, key, value, padding, dropout, alpha, beta, gamma, delta, output, statistics, center, inhibition,
        causal,
    ):  # fmt: skip
        of_delta = torch.empty(0) if delta is None else torch.empty_like(delta)
        return *(like_heads(x) for x in (query, key, value)), *(torch.empty_like(x) for x in (alpha, beta, gamma)), of_delta

    def setup_context(ctx, inputs, output):
        *tensors, ctx.center, ctx.inhibition, ctx.causal = inputs
        save(ctx, *tensors, None if tensors[8] is None else output[0], output[1])
        ctx.mark_non_differentiable(output[1])

    def differentiate(ctx, grad_output, _):
        refuse_tangents(grad_output)
        saved = saved_tensors(ctx)
        gradients = backward_op(grad_output, *saved, ctx.center, ctx.inhibition, ctx.causal)
        of_delta = None if saved[8] is None else gradients[6]
        return *gradients[:3], None, None, *gradients[3:6], of_delta, None, None, None

    forward_op.register_autograd(differentiate, setup_context=setup_context)

    class Attention(torch.autograd.Function):
        """The same two passes, for tensors that no tracer looks at."""

        @staticmethod
        def forward(ctx, *inputs):
            output = run_forward(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx, grad_output, _):
            saved = saved_tensors(ctx)
            arguments: list[Any] = [grad_output, *saved, ctx.center, ctx.inhibition, ctx.causal]
            refuse_tangents(grad_output)
            with torch.no_grad():
                # The inputs were asked at the forward pass, unless hooks have had them since; a batch has no storage.
                asked = (grad_output,) if ctx.kinds is None else arguments
                direct = untraced(*asked) and torch._C._has_storage(grad_output)
                computed = (run_backward if direct else backward_op)(*arguments)
            gradients = first_order_only(computed, *saved[:3], *saved[5:9], grad_output)
            of_delta = None if saved[8] is None else gradients[6]
            return *gradients[:3], None, None, *gradients[3:6], of_delta, None, None, None

    def attention(*arguments) -> Tensor:
        if not untraced(*arguments):
            return forward_op(*arguments)[0]
        if torch.is_grad_enabled():
            for x in arguments[:9]:
                if x is not None and x.requires_grad:
                    return Attention.apply(*arguments)[0]
        return run_forward(*arguments)[0]

    return attention


def register_inference(namespace: str, name: str, forward: Callable) -> Callable[..., Tensor]:
    """An operator without a gradient, `forward` and what is returned as in `register_backend`."""
    run_forward, forward_op = _register_forward(namespace, name, forward)

    def attention(*arguments) -> Tensor:
        return (run_forward if untraced(*arguments) else forward_op)(*arguments)[0]

    return attention


def save(ctx: Any, *saved: Tensor | None) -> None:
    """For the backward pass; what is last is contiguous."""
    ctx.save_for_backward(*saved)
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    ctx.kinds = None if hooks is None else [_kind(x) for x in saved]


def _kind(x: Tensor | None) -> tuple | None:
    return None if x is None else (x.shape, x.dtype, x.device)


def saved_tensors(ctx: Any) -> tuple[Any, ...]:
    """What was saved for the backward pass; read once, as checkpointing recomputes it for one reading.

    Hooks on saved tensors may hand back others than they were given, and code that reads memory would not notice.
    """
    saved = ctx.saved_tensors
    if ctx.kinds is None:
        return saved
    if ctx.kinds != [_kind(x) for x in saved]:
        raise ValueError(
            "What inhibitor_attention had saved for its backward pass came back with another shape, dtype or device; "
            "the hooks of torch.autograd.graph.saved_tensors_hooks must restore what they packed."
        )
    *tensors, statistics = saved
    return *tensors, None if statistics is None else statistics.contiguous()


def refuse_tangents(grad_output: Tensor) -> None:
    """The compiled gradients would be constants to forward-mode differentiation."""
    if has_tangent(grad_output):
        raise RuntimeError(
            "The gradients of inhibitor_attention have no forward-mode derivative in its compiled forms; "
            'use backend="naive" for one.'
        )


def _register_forward(namespace: str, name: str, forward: Callable) -> tuple[Callable, Any]:
    """The function that makes the outputs and fills them, and the same as an operator."""

    def run_forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None,
        dropout: Tensor | None,
        alpha: Tensor,
        beta: Tensor,
        gamma: Tensor,
        delta: Tensor | None,
        center: int,
        inhibition: int,
        causal: bool,
    ) -> tuple[Tensor, Tensor]:
        output, statistics = _forward_outputs(query, delta, center)
        if query.numel() == 0 or key.numel() == 0:
            return output.zero_(), statistics.zero_()
        inputs = (query, key, value, padding, dropout, alpha, beta, gamma, delta)
        forward(*inputs, center, inhibition, causal, output, statistics)
        return output, statistics

    forward_op = torch.library.custom_op(f"{namespace}::{name}", run_forward, mutates_args=())

    @forward_op.register_fake
    def _(query, key, value, padding, dropout, alpha, beta, gamma, delta, center, inhibition, causal):
        return _forward_outputs(query, delta, center)

    return run_forward, forward_op


def _forward_outputs(query: Tensor, delta: Tensor | None, center: int) -> tuple[Tensor, Tensor]:
    batch, heads, queries, _ = query.shape
    count = center + (delta is not None)  # the center is 0, 1, or 2 of them
    # `new_empty` takes twice as long.
    statistics = torch.empty((count, batch, heads, queries) if count else (0,), dtype=torch.float32, device=query.device)
    return like_heads(query), statistics
