"""What torch's dispatcher would ask before an operation, for code that reads a tensor's memory by its address.

The memory of a tensor need not hold its values: a view may be negated lazily, a zero tensor has no memory, and a storage may
have been freed or cut while its tensors still exist.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

# What an operator takes, in its order, by the names that its caller knows.
INPUTS = ("query", "key", "value", "key_padding_mask", "key_dropout_mask", "alpha", "beta", "gamma")

_PLAIN = (Tensor, Parameter)


def untraced(*arguments: Any) -> bool:
    """Whether memory holds the values of all tensors among `arguments`, and nothing looks at what is done with them.

    Then it can be done without asking torch, whose dispatch of a registered operator takes longer than a small call's
    arithmetic. Otherwise the operator must be called: the dispatcher then hands on plain tensors, or raises.
    """
    if torch.compiler.is_compiling():
        return False
    c = torch._C
    if c._len_torch_dispatch_stack() or c._len_torch_function_stack():
        return False
    if c._is_tracing() or c._are_functorch_transforms_active():
        return False
    for x in arguments:
        if type(x) in _PLAIN:
            if x.is_neg() or x._is_zerotensor():
                return False
        elif isinstance(x, Tensor):
            return False
    return True


@lru_cache(maxsize=4096)
def reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first one to the end of the last one."""
    return 0 if 0 in shape else 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def addresses(names: Sequence[str], tensors: Sequence[Tensor | None], needed: Sequence[int]) -> list[int]:
    """Where the memory of each tensor begins; 0 for None.

    names: what their caller knows them by.
    needed: bytes of each that will be read from there on.

    Raises:
        ValueError: they are not in the storage of a tensor, because it was freed or cut.
    """
    places = []
    for x, size in zip(tensors, needed, strict=True):
        if x is None:
            places.append(0)
            continue
        place, storage = x.data_ptr(), x.untyped_storage()
        begin = storage.data_ptr()
        if size and not (begin and place + size <= begin + storage.nbytes()):
            name = names[len(places)]
            raise ValueError(
                f"{name} has no memory for its elements: shape {tuple(x.shape)}, strides {x.stride()} and storage offset "
                f"{x.storage_offset()} need {x.storage_offset() * x.itemsize + size} bytes, and its storage holds "
                f"{storage.nbytes() if begin else 0}; use it before its storage is freed or resized."
            )
        places.append(place)
    return places


def check_memory(names: Sequence[str], tensors: Sequence[Tensor | None]) -> None:
    """Raises ValueError where the storage of a tensor does not hold all its elements, as `addresses` does."""
    held = [x if x is not None and _has_memory(x) else None for x in tensors]
    addresses(names, held, [0 if x is None else x.itemsize * reach(x.shape, x.stride()) for x in held])


def _has_memory(x: Tensor) -> bool:
    """Whether x is of the kind whose elements are in a storage."""
    return x.device.type in ("cpu", "cuda") and x.layout == torch.strided and not torch._is_functional_tensor(x)


def _layers(x: Tensor) -> Iterator[Tensor]:
    """x, and the tensors that the transforms of torch.func have wrapped."""
    yield x
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
        yield x


def has_tangent(*arguments: Any) -> bool:
    """Whether forward-mode differentiation follows one of the tensors among `arguments`."""
    if forward_ad._current_level < 0:
        return False
    layers = [layer for x in arguments if isinstance(x, Tensor) for layer in _layers(x)]
    batched = torch._C._functorch.is_batchedtensor
    return any(forward_ad.unpack_dual(x).tangent is not None for x in layers if not batched(x))


def is_differentiated(x: Any) -> bool:
    """Whether x is a tensor whose derivatives, in either mode, are asked for."""
    if not isinstance(x, Tensor):
        return False
    if torch.is_grad_enabled():
        transformed = torch._C._are_functorch_transforms_active()
        if x.requires_grad or (transformed and any(layer.requires_grad for layer in _layers(x))):
            return True
    return has_tangent(x)
