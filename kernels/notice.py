"""Says once a process, where everybody sees it, that inhibitor attention takes a slow road, and what would help."""

import importlib.util
import logging

import torch

from .llvm.jit import CompilerUnavailable, host_machine

logger = logging.getLogger(__name__)

NO_TRITON = "the package triton is not installed; pip install triton"
_COSTS = {
    "cpu": "20 to 70 times slower than softmax attention, and a whole model takes 2 to 5 times as long; the compiled form "
    "is about as fast as softmax",
    "cuda": "many times slower than the fused kernels, and takes more memory",
}
# One for the whole process, which may hold this code more than once: from the package and from checkpoints.
_said: set[str] = logging.getLogger("inhibitor_attention").__dict__.setdefault("said", set())


def say_slow(device: str, reason: str, what: str = "Inhibitor attention") -> None:
    """Warn that `what` runs in plain torch on this type of device: why, and how slow that is.

    Nothing is said within a graph that torch.compile or torch.export makes, nor on the meta device.
    """
    if torch.compiler.is_compiling() or device == "meta" or reason in _said:
        return
    _said.add(reason)
    cost = _COSTS.get(device, "many times slower than a compiled form")
    message = "%s runs in plain torch on the device %r, not in its compiled form: %s. That is %s."
    logger.warning(message, what, device, reason, cost)


def say_what_is_missing() -> None:
    """Say when a model is loaded what its first call on this machine's best device would say of a missing package."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        try:
            host_machine()
        except CompilerUnavailable as error:
            say_slow("cpu", str(error))
    elif accelerator.type == "cuda" and importlib.util.find_spec("triton") is None:
        say_slow("cuda", NO_TRITON)
