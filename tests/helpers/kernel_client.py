"""What a stranger does with a kernel repository: run by test_kernel_repository.py where this package cannot be imported.

`python -I kernel_client.py CALLS.pt RESULTS.pt` makes the calls, `{label: (function, arguments)}`, in order, and writes
`{label: result}`.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import kernels

SCALARS = ("alpha", "beta", "gamma")


def values_and_gradients(attention, tensors: dict[str, Tensor], grad_output: Tensor, **options) -> dict[str, Tensor]:
    """The output of `attention`, and the gradients of the tensors and of its own parameters, by name."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    output = attention(**leaves, **options)
    if isinstance(attention, nn.Module):
        leaves |= {name.rpartition(".")[2]: parameter for name, parameter in attention.named_parameters()}
    gradients = torch.autograd.grad(output, list(leaves.values()), grad_output)
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


def operator(folder: str, backends: list[str], **call) -> dict[str, dict[str, Tensor]]:
    """The operator by each backend."""
    kernel = kernels.get_local_kernel(Path(folder))
    return {backend: values_and_gradients(kernel.inhibitor_attention, backend=backend, **call) for backend in backends}


@kernels.use_kernel_forward_from_hub("InhibitorAttention")
class Adopting(nn.Module):
    """Someone's module, whose own forward must not run."""

    def __init__(self, centered: bool, signed: bool, **scalars: Tensor) -> None:
        super().__init__()
        self.centered, self.signed = centered, signed
        for name, scalar in scalars.items():
            self.register_parameter(name, nn.Parameter(scalar))

    def forward(self, query, key, value, key_padding_mask=None, key_dropout_mask=None):
        raise NotImplementedError


def layer(folder: str, tensors: dict[str, Tensor], grad_output: Tensor, centered: bool, signed: bool, **masks) -> dict:
    """What `kernelize` makes of a module, as it is and compiled."""
    repository = kernels.LocalLayerRepository(Path(folder), layer_name="InhibitorAttention")
    mode = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
    module = Adopting(centered, signed, **{name: tensors[name] for name in SCALARS})
    with kernels.use_kernel_mapping({"InhibitorAttention": {"cpu": {mode: repository}}}):
        module = kernels.kernelize(module, mode=mode, device="cpu", use_fallback=False)
    heads = {name: tensor for name, tensor in tensors.items() if name not in SCALARS}
    results = {"as it is": values_and_gradients(module, heads, grad_output, **masks)}
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    return results | {"compiled": values_and_gradients(compiled, heads, grad_output, **masks)}


def main(calls: str, results: str) -> None:
    # However it was installed, to import it is an error now.
    sys.modules["inhibidistilbert"] = None  # type: ignore[assignment]
    made = {label: globals()[function](**arguments) for label, (function, arguments) in torch.load(calls).items()}
    torch.save(made, results)


if __name__ == "__main__":
    main(*sys.argv[1:])
