"""What a stranger does with the kernel: run in an interpreter that cannot import the package it came from.

`kernel_stranger.py VARIANT OUTPUT.safetensors` imports the folder of a variant as the library `kernels` does, and
writes the output of its operator.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


@torch.no_grad()
def call(operator: Callable[..., Any]) -> Tensor:
    """The output for a fixed input, some of whose keys are padding."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 17, 32, generator=generator).unbind(0)
    return operator(query, key, value, key_padding_mask=torch.arange(17) < torch.tensor([[17], [9]]), gamma=0.3)


def main(variant: str, target: str) -> None:
    init = Path(variant, "__init__.py")
    spec = importlib.util.spec_from_file_location("stranger_kernel", init, submodule_search_locations=[variant])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stranger_kernel"] = module
    spec.loader.exec_module(module)
    save_file({"output": call(module.inhibitor_attention).contiguous()}, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
