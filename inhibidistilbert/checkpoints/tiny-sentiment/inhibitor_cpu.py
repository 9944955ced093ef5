"""Inhibitor attention compiled for the processor it runs on."""

from torch import Tensor


def cpu_refusal(query: Tensor) -> str | None:
    return "there is no such backend yet"


def cpu_attention(*arguments) -> Tensor:
    raise NotImplementedError
