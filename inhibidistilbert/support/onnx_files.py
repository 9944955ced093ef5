"""Writes models as ONNX files, and runs those in ONNX Runtime."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_MOST_ROWS = 1024


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """torch's exporter and the quantizer speak of what nobody here can change."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "root")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@torch.no_grad()
def write_float(model: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], file: Path, positions: int) -> None:
    """A model of token ids and an attention mask, `(batch, tokens)` of any size, in the type of its weights."""
    sizes = {0: Dim("batch_size", min=1, max=_MOST_ROWS), 1: Dim("sequence_length", min=1, max=positions)}
    torch.onnx.export(
        model,
        (),
        file,
        kwargs=dict(inputs),
        dynamic_shapes=dict.fromkeys(inputs, sizes),
        input_names=list(inputs),
        output_names=list(outputs),
        external_data=False,
        dynamo=True,
        verbose=False,
    )


def write_quantized(source: Path, file: Path) -> None:
    """The int8 form of a float32 file; activations are rounded at each call."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Seven bits a weight: with eight, processors without instructions for dot products of bytes overflow.
    quantize_dynamic(source, file, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)


def session_of(file: Path, threads: int) -> Any:
    """ONNX Runtime on so many threads of this processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Or its threads wait busily after a call, and take the processor from whoever is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
