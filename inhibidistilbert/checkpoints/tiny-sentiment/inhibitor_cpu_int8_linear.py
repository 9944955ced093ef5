"""A linear layer of int8 weights, compiled for the processor it runs on, and in plain torch.

Each row of x is rounded to 8 bits on a grid of its own as it comes: `x = step * x8`, x8 in -127 .. 127, and
`y = (x8 @ weight.T) * step * weight_scale + bias`, the product in whole numbers.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import linear, pad

from .inhibitor_custom_op import op_namespace
from .inhibitor_llvm_jit import Machine, entry, host_machine, refusal
from .inhibitor_memory import check_memory, has_tangent, untraced
from .inhibitor_notice import say_slow
from .inhibitor_quantized import SMALLEST
from .inhibitor_cpu_code_linear import LARGEST, block_rows, int8_linear_ir, panel, workspace_size
from .inhibitor_cpu_launch import Plan, pack, run

# Inputs whose products a sum of 32 bits holds.
LARGEST_DEPTH = (2**31 - 1) // LARGEST**2
# Below so many products the threads would wait for each other longer than they compute.
_WORTH_A_THREAD = 1 << 21

_NAMES = ("x", "weight", "weight_scale", "bias")

# Tests set another machine than the one at hand.
machine: Callable[[], Machine] = host_machine
_problem = torch.compiler.assume_constant_result(lambda: refusal(machine, ("int8_linear", int8_linear_ir)))


def plain_int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    """`int8_linear` in plain torch; the product in float32, exact up to 1040 inputs, or for very many in float64."""
    rows = x.float()
    reach = rows.abs().amax(-1, keepdim=True)
    x8 = (rows * torch.where(reach < SMALLEST, 0.0, reach.reciprocal() * LARGEST)).round()
    exact = torch.float64 if weight.shape[1] > LARGEST_DEPTH and x.device.type != "mps" else torch.float32
    return (linear(x8.to(exact), weight.to(exact)).float() * (reach * (1 / LARGEST)) * weight_scale + bias).to(x.dtype)


@lru_cache(maxsize=4096)
def _plan(machine: Machine, rows: int, depth: int, width: int, row_stride: int, threads: int) -> Plan:
    size = block_rows(machine, rows)
    blocks = -(-rows // size)
    threads = min(threads, -(-rows * depth * width // _WORTH_A_THREAD))
    # With few rows the threads share their outputs; each then quantizes the rows anew.
    parts = min(width // panel(machine), -(-threads // blocks)) if blocks < 4 * threads else 1
    threads = min(threads, blocks * parts)
    memory = workspace_size(machine, size, depth)
    words = (blocks * parts, parts, memory, rows, size, depth, width, row_stride)
    return Plan(entry("int8_linear", int8_linear_ir, machine), pack(words), threads, threads * memory)


def _linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    width, depth = weight.shape
    if x.numel() == 0 or width == 0:
        return x.new_zeros(*x.shape[:-1], width)
    check_memory(_NAMES, (x, weight, weight_scale, bias))
    rows = x.reshape(-1, depth).float()
    extra, more = -depth % (4 * machine().lanes), -width % panel(machine())
    if extra or more:
        rows, weight = pad(rows, (0, extra)), pad(weight, (0, extra, 0, more))
        weight_scale, bias = pad(weight_scale, (0, more)), pad(bias, (0, more))
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    output = torch.empty(rows.shape[0], width + more, dtype=torch.float32)
    plan = _plan(machine(), *rows.shape, width + more, rows.stride(0), torch.get_num_threads())
    others = weight.contiguous(), weight_scale.float().contiguous(), bias.float().contiguous()
    run(plan, (), (), (rows, *others, output))
    return output[:, :width].to(x.dtype).contiguous().view(*x.shape[:-1], width)


_compiled_int8_linear = torch.library.custom_op(f"{op_namespace(__name__, __file__)}::int8_linear", _linear, mutates_args=())


@_compiled_int8_linear.register_fake
def _(x, weight, weight_scale, bias):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _check(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> None:
    if weight.dtype != torch.int8 or weight.ndim != 2:
        raise ValueError(f"weight must be (outputs, inputs) int8, got {weight.dtype} of shape {tuple(weight.shape)}.")
    width, depth = weight.shape
    if x.ndim == 0 or x.shape[-1] != depth:
        raise ValueError(f"x must end in the {depth} inputs of weight, got shape {tuple(x.shape)}.")
    for name, of_outputs in (("weight_scale", weight_scale), ("bias", bias)):
        if of_outputs.shape != (width,):
            raise ValueError(f"{name} must have shape (outputs,) = ({width},), got {tuple(of_outputs.shape)}.")
    for name, other in (("weight", weight), ("weight_scale", weight_scale), ("bias", bias)):
        if other.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}; it is on {other.device}.")
    if forward_ad._current_level >= 0 and has_tangent(x, weight_scale, bias):
        raise ValueError("An int8 linear layer has no derivative, and an input has a forward-mode tangent.")


def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor) -> Tensor:
    """A linear layer, for inference: `(..., inputs)` -> `(..., outputs)` in the dtype of x, computed in float32.

    weight: `(outputs, inputs)` int8, none of them -128.
    weight_scale: `(outputs,)`, what a step of each row's weights stands for.
    bias: `(outputs,)`.

    A row that is not finite gives NaN.

    Raises:
        ValueError: shapes, devices or a dtype of the weights that do not fit, a tensor whose storage does not hold it, or
            one with a forward-mode tangent: there is no derivative.
    """
    _check(x, weight, weight_scale, bias)
    direct = untraced(x, weight, weight_scale, bias)
    problem = None if torch.compiler.is_exporting() else _refusal(x, weight)
    if problem is not None or torch.compiler.is_exporting():
        if problem is not None:
            say_slow(x.device.type, problem, "The product with int8 weights")
        if direct:
            check_memory(_NAMES, (x, weight, weight_scale, bias))
        return plain_int8_linear(x, weight, weight_scale, bias)
    differentiable = torch.is_grad_enabled() and (x.requires_grad or weight_scale.requires_grad or bias.requires_grad)
    return (_linear if direct and not differentiable else _compiled_int8_linear)(x, weight, weight_scale, bias)


def _refusal(x: Tensor, weight: Tensor) -> str | None:
    """Why there is no compiled form for this call."""
    if x.device.type != "cpu":
        return "there is one for CPUs alone"
    if weight.shape[1] > LARGEST_DEPTH:
        return f"it takes up to {LARGEST_DEPTH} inputs, and these are {weight.shape[1]}"
    return _problem()
