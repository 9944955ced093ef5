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
from torch.nn import Parameter

from .inhibitor_torch import first_order_only


def like_heads(x: Tensor) -> Tensor:
    """An uninitialised `(B, H, L, d)` in x's dtype, in memory `(B, L, H, d)`: what the projections read without a copy."""
    batch, heads, length, size = x.shape
    return x.new_empty(batch, length, heads, size).transpose(1, 2)


def op_namespace(module: str, file: str) -> str:
    """A namespace that only this copy of the source uses.

    The same backend can be in a process more than once, from this package and from checkpoints of other versions, and
    torch silently binds an operator's name to whoever registers it last.
    """
    return f"inhibitor_{hashlib.sha256(module.encode() + Path(file).read_bytes()).hexdigest()[:12]}"


def register_backend(namespace: str, forward: Callable, backward: Callable) -> Callable[..., Tensor]:
    """The differentiable operator of a backend.

    forward: `(query, key, value, padding, dropout, alpha, beta, gamma, centered, signed, causal, output, mean)`, fills
        output, `(B, H, M, d)` in the dtype of query, and, where centred, mean, `(B, H, M)` float32: each query's mean
        Manhattan distance to its visible keys, which the backward pass would else have to compute again.
    backward: `(grad_output, query, key, value, padding, dropout, alpha, beta, gamma, mean, centered, signed, causal,
        grad_query, grad_key, grad_value)`, fills the last three, laid out as those of `like_heads`, and returns the
        gradients of alpha, beta and gamma, float32.

    query `(B, H, M, d)`, key and value `(B, H, N, d)` of one dtype, with any strides and never empty; padding and dropout
    `(B, N)` bool or None; alpha, beta, gamma `(1,)` or `(H,)` float32. `mean` is empty where not centred.

    Returns a function of the first eleven arguments that gives the output.
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
        mean: Tensor,
        centered: bool,
        signed: bool,
        causal: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        grad_query, grad_key, grad_value = (like_heads(x) for x in (query, key, value))
        if query.numel() == 0 or key.numel() == 0:
            for gradient in (grad_query, grad_key, grad_value):
                gradient.zero_()
            grad_alpha, grad_beta, grad_gamma = (torch.zeros_like(scalar) for scalar in (alpha, beta, gamma))
        else:
            inputs = (grad_output, query, key, value, padding, dropout, alpha, beta, gamma, mean)
            gradients = (grad_query, grad_key, grad_value)
            grad_alpha, grad_beta, grad_gamma = backward(*inputs, centered, signed, causal, *gradients)
        return grad_query, grad_key, grad_value, grad_alpha, grad_beta, grad_gamma

    backward_op = torch.library.custom_op(f"{namespace}::backward", run_backward, mutates_args=())

    @backward_op.register_fake
    def _(grad_output, query, key, value, padding, dropout, alpha, beta, gamma, mean, centered, signed, causal):
        return *(like_heads(x) for x in (query, key, value)), *(torch.empty_like(x) for x in (alpha, beta, gamma))

    def setup_context(ctx, inputs, output):
        *tensors, ctx.centered, ctx.signed, ctx.causal = inputs
        ctx.save_for_backward(*tensors, output[1])
        ctx.mark_non_differentiable(output[1])

    def differentiate(ctx, grad_output, _):
        gradients = backward_op(grad_output, *ctx.saved_tensors, ctx.centered, ctx.signed, ctx.causal)
        return *gradients[:3], None, None, *gradients[3:], None, None, None

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
            saved = ctx.saved_tensors  # read once: checkpointing recomputes them for one reading
            arguments: list[Any] = [grad_output, *saved, ctx.centered, ctx.signed, ctx.causal]
            with torch.no_grad():
                computed = run_backward(*arguments)
            gradients = first_order_only(computed, *saved[:3], *saved[5:8], grad_output)
            return *gradients[:3], None, None, *gradients[3:], None, None, None

    def attention(*arguments) -> Tensor:
        if not untraced(*arguments):
            return forward_op(*arguments)[0]
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments):
            return Attention.apply(*arguments)[0]
        return run_forward(*arguments)[0]

    return attention


def register_inference(namespace: str, name: str, forward: Callable) -> Callable[..., Tensor]:
    """An operator without a gradient, `forward` and what is returned as in `register_backend`."""
    run_forward, forward_op = _register_forward(namespace, name, forward)

    def attention(*arguments) -> Tensor:
        return (run_forward if untraced(*arguments) else forward_op)(*arguments)[0]

    return attention


def untraced(*arguments: Any) -> bool:
    """Whether nothing looks at what is done with these arguments, so that it can be done without asking torch.

    The dispatch of a registered operator takes torch longer than a small call's arithmetic.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return all(type(x) in (Tensor, Parameter) for x in arguments if isinstance(x, Tensor))


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
        centered: bool,
        signed: bool,
        causal: bool,
    ) -> tuple[Tensor, Tensor]:
        output, mean = _forward_outputs(query, centered)
        if query.numel() == 0 or key.numel() == 0:
            return output.zero_(), mean.zero_()
        forward(query, key, value, padding, dropout, alpha, beta, gamma, centered, signed, causal, output, mean)
        return output, mean

    forward_op = torch.library.custom_op(f"{namespace}::{name}", run_forward, mutates_args=())

    @forward_op.register_fake
    def _(query, key, value, padding, dropout, alpha, beta, gamma, centered, signed, causal):
        return _forward_outputs(query, centered)

    return run_forward, forward_op


def _forward_outputs(query: Tensor, centered: bool) -> tuple[Tensor, Tensor]:
    mean = query.new_empty(query.shape[:3] if centered else (0,), dtype=torch.float32)
    return like_heads(query), mean
