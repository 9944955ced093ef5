"""Ways to run the same model on a GPU: as it is, its layers compiled, as CUDA graphs, and both together."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Graphed(nn.Module):
    """A model for inference that captures a CUDA graph the first time a shape comes, and replays it from then on.

    The output is a buffer that the next call of that shape overwrites.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._graphs: dict[Any, tuple[Mapping[str, Tensor], Any, torch.cuda.CUDAGraph]] = {}

    def forward(self, **inputs: Tensor) -> Any:
        key = tuple((name, tensor.shape) for name, tensor in inputs.items())
        if key not in self._graphs:
            self._graphs[key] = self._capture(inputs)
        static, output, graph = self._graphs[key]
        for name, tensor in inputs.items():
            static[name].copy_(tensor)
        graph.replay()
        return output

    def _capture(self, inputs: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Any, torch.cuda.CUDAGraph]:
        static = {name: tensor.clone() for name, tensor in inputs.items()}
        # What torch asks for: a few calls on a stream of their own, which also compile and set up libraries.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.model(**static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.model(**static)
        return static, output, graph


def compiled(model: nn.Module) -> nn.Module:
    """A copy whose layers are compiled: one layer's code serves all of them, and every shape but a batch of one."""
    # Peers, masks and batches of one are variants of one function; beyond its limit torch would run it as it stands.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    model = copy.deepcopy(model)
    layers: Any = model.get_submodule("transformer.layer")
    for layer in layers:
        layer.compile(dynamic=True)
    return model


# Ways to run a model: of which other way, and what makes one of the other.
EAGER = "eager"
MODES: Mapping[str, tuple[str, Callable[[nn.Module], nn.Module]]] = {
    EAGER: (EAGER, lambda model: model),
    "CUDA graph": (EAGER, Graphed),
    "torch.compile": (EAGER, compiled),
    "torch.compile + CUDA graph": ("torch.compile", Graphed),
}
