"""Softmax DistilBERT in the engines that people serve it with on a processor: ONNX Runtime and OpenVINO.

The model is written to a file once, quantised for int8, and read anew for every number of threads, as a server would. Each
engine has its own best form: ONNX Runtime dynamic quantization, OpenVINO the static one of NNCF after calibration.
"""

import contextlib
import io
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..support import onnx_files
from ..support.memory import resident_bytes
from .timing import SEED, Refused

# Texts that calibrate, and their tokens at most. The values of a model with random weights decide about no speed.
_CALIBRATION, _CALIBRATION_TOKENS = 8, 128
Arrays = dict[str, np.ndarray]


class _Plain(nn.Module):
    """A model as a function of its two inputs that returns a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).to_tuple()


class Engine(ABC):
    """What runs a model from a file, and the packages that it needs."""

    packages: ClassVar[tuple[str, ...]]

    @abstractmethod
    def write(self, model: nn.Module, texts: list[Arrays], positions: int, folder: Path, dtype: str) -> Path:
        """The model for inference in `dtype`, in a file of the folder. Raises `Refused` where there is no such form."""

    @abstractmethod
    def start(self, file: Path, dtype: str, threads: int) -> Callable[[Arrays], object]:
        """What runs a batch on so many threads. Raises `Refused` where the processor cannot."""

    @abstractmethod
    def weight_bytes(self, file: Path) -> int:
        """Of the constants in the file."""


class OnnxRuntime(Engine):
    packages = onnx_files.PACKAGES

    def write(self, model: nn.Module, texts: list[Arrays], positions: int, folder: Path, dtype: str) -> Path:
        single, quantized = folder / "model.onnx", folder / "model_int8.onnx"
        if dtype not in ("float32", "int8"):
            raise Refused(f"ONNX Runtime has no {dtype} form of it for processors")
        with onnx_files.quiet_exporters(), contextlib.redirect_stdout(io.StringIO()):
            if not single.exists():
                example = {name: torch.from_numpy(array) for name, array in texts[0].items()}
                onnx_files.write_float(model, example, ["output"], single, positions)
            if dtype == "int8" and not quantized.exists():
                onnx_files.write_quantized(single, quantized)
        return quantized if dtype == "int8" else single

    def start(self, file: Path, dtype: str, threads: int) -> Callable[[Arrays], object]:
        session = onnx_files.session_of(file, threads)
        return lambda arrays: session.run(None, arrays)

    def weight_bytes(self, file: Path) -> int:
        import onnx

        return sum(onnx.numpy_helper.to_array(each).nbytes for each in onnx.load(file).graph.initializer)


class OpenVino(Engine):
    packages = ("openvino", "nncf")

    def write(self, model: nn.Module, texts: list[Arrays], positions: int, folder: Path, dtype: str) -> Path:
        if dtype == "float16":
            raise Refused("OpenVINO has no float16 form of it for processors")
        single, quantized = folder / "model.xml", folder / "model_int8.xml"
        with _openvino_alone():
            import openvino

            if not single.exists():
                shape = openvino.PartialShape([-1, -1])
                inputs = [(name, shape, openvino.Type.i64) for name in texts[0]]
                example = {name: torch.from_numpy(array) for name, array in texts[0].items()}
                openvino.save_model(
                    openvino.convert_model(model, example_input=example, input=inputs), single, compress_to_fp16=False
                )
            if dtype == "int8" and not quantized.exists():
                import nncf

                nncf.set_log_level(logging.ERROR)
                graph = openvino.Core().read_model(single)
                kind, size = nncf.ModelType.TRANSFORMER, len(texts)
                graph = nncf.quantize(graph, nncf.Dataset(texts), model_type=kind, subset_size=size)
                openvino.save_model(graph, quantized, compress_to_fp16=False)
        return quantized if dtype == "int8" else single

    def start(self, file: Path, dtype: str, threads: int) -> Callable[[Arrays], object]:
        with _openvino_alone():
            import openvino
        options: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        # In int8 what is not quantised runs in the type that the engine takes by itself, which is its fastest.
        if dtype != "int8":
            options["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[dtype]
        core = openvino.Core()
        if dtype == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise Refused("OpenVINO computes bfloat16 in float32 on this processor")
        request = core.compile_model(file, "CPU", options).create_infer_request()
        return lambda arrays: request.infer(arrays, share_inputs=True, share_outputs=True)

    def weight_bytes(self, file: Path) -> int:
        return file.with_suffix(".bin").stat().st_size


ENGINES: Mapping[str, Engine] = {"openvino": OpenVino(), "onnxruntime": OnnxRuntime()}


@contextlib.contextmanager
def _openvino_alone() -> Iterator[None]:
    """OpenVINO's tools print bars and warnings to standard output, and tell their makers of each use."""
    # With None in its place the import fails, and the tools do without.
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    with onnx_files.quiet_exporters(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        yield


@dataclass(frozen=True)
class Graph:
    """A model in the file of an engine, not yet read."""

    engine: Engine
    file: Path
    dtype: str
    weight_bytes: int

    def start(self, batch: Mapping[str, Tensor]) -> "Session":
        """Read it, for as many threads as torch has, and run a batch."""
        before = resident_bytes()
        run = self.engine.start(self.file, self.dtype, torch.get_num_threads())
        session = Session(run, self.weight_bytes)
        session(**batch)
        after = resident_bytes()
        session.held_bytes = None if before is None or after is None else max(0, after - before)
        return session


@dataclass
class Session:
    """A model that runs in an engine.

    Attributes:
        weight_bytes: in the file; in memory the engine may hold them in another form.
        held_bytes: by which the process grew until the first batch was done; None where the system does not tell.
    """

    run: Callable[[Arrays], object]
    weight_bytes: int
    held_bytes: int | None = None

    def __call__(self, **inputs: Tensor) -> object:
        return self.run({name: tensor.numpy() for name, tensor in inputs.items()})


@torch.no_grad()
def write(model: nn.Module, engine: Engine, vocabulary: int, positions: int, folder: Path, dtype: str) -> Graph:
    """A model for an engine, in the folder; what another dtype has left there is used again. Raises `Refused`."""
    generator = torch.Generator().manual_seed(SEED)
    texts = []
    for _ in range(_CALIBRATION):
        ids = torch.randint(1, vocabulary, (2, min(_CALIBRATION_TOKENS, positions)), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, ids.shape[1] // 2 :] = 0  # or the mask could be left out of the graph
        texts.append({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    file = engine.write(_Plain(model).eval(), texts, positions, folder, dtype)
    engine.start(file, dtype, threads=1)  # what the engine itself takes in memory is there before a model is measured
    return Graph(engine, file, dtype, engine.weight_bytes(file))
