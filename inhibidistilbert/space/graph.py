"""The model of the page as one ONNX file: logits, and the scores Z of every layer and head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..support.errors import UserError, reason
from ..support.onnx_files import quiet_exporters, session_of, write_float

OUTPUTS = ("logits", "inhibition")
_TOLERANCE = 1e-5  # as a share of the largest of an output, or of 1 where that is less
_FEW = 1024  # numbers that are not worth a node of their own


class _WithScores(nn.Module):
    """Logits `(batch, labels)` of all rows, and Z `(layers, heads, tokens, tokens)` of the first."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, output_attentions=True)
        return found.logits, torch.stack([scores[0] for scores in found.attentions])


def write_graph(model: PreTrainedModel, batch: Mapping[str, Tensor], file: Path, tokens: int) -> None:
    """Write the float32 model for any number of rows of up to `tokens` tokens, and compare it with the model.

    A weight that float16 holds exactly is stored so: half the bytes, the same values.

    batch: rows of different lengths. With one of the words hidden they are what the two are compared on.

    Raises:
        UserError: the exporter refuses the model, or the file disagrees with it.
    """
    plain = _WithScores(model.float().cpu().eval()).eval()
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with quiet_exporters():
            write_float(plain, batch, OUTPUTS, file, tokens)
            _optimize(file)
            _store_halves(file)
            difference = _difference(plain, batch, file)
    except Exception as error:  # the exporter has many ways to fail
        raise UserError(f"CHECKPOINT_DIR cannot be exported: {reason(error)}") from error
    finally:
        model.set_attn_implementation(usual)
    if not difference <= _TOLERANCE:
        raise UserError(f"the exported model differs from CHECKPOINT_DIR by {difference:.1e}, and may by {_TOLERANCE:.0e}.")


def _difference(plain: nn.Module, batch: Mapping[str, Tensor], file: Path) -> float:
    """The largest, as a share of the largest of an output, or of 1 where that is less. NaN is infinitely far."""
    session, largest = session_of(file, threads=1), 0.0
    ids, mask = batch["input_ids"], batch["attention_mask"]
    hidden = mask.clone()
    hidden[:, 1] = 0
    single = int(mask[0].sum())
    for inputs in ((ids, hidden), (ids[:1, :single], mask[:1, :single])):
        with torch.inference_mode():
            wanted = [output.numpy() for output in plain(*inputs)]
        got = session.run(None, {"input_ids": inputs[0].numpy(), "attention_mask": inputs[1].numpy()})
        for one, other in zip(got, wanted, strict=True):
            found = float(np.abs(one - other).max()) / max(1.0, float(np.abs(other).max()))
            largest = max(largest, found if np.isfinite(found) else float("inf"))
    return largest


def _optimize(file: Path) -> None:
    """What ONNX Runtime would do at each start, but for what fits one kind of processor alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(file)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])


def _store_halves(file: Path) -> None:
    """Rows of an embedding become float32 behind the look-up, other weights before they are used."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(file)
    graph: Any = model.graph
    nodes, casts = list(graph.node), []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or values.size < _FEW:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name, stored = weight.name, f"{weight.name}_half"
        weight.CopyFrom(numpy_helper.from_array(half, stored))
        readers = [node for node in nodes if name in node.input]
        if [node.op_type for node in readers] == ["Gather"]:
            rows, output = f"{name}_rows", readers[0].output[0]
            readers[0].input[0], readers[0].output[0] = stored, rows
            cast = helper.make_node("Cast", [rows], [output], name=f"{name}_cast", to=TensorProto.FLOAT)
            nodes.insert(nodes.index(readers[0]) + 1, cast)
        else:
            casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}_cast", to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend([*casts, *nodes])  # a node stands behind those that it reads from
    del graph.value_info[:]  # some of it is of the weights as they were
    onnx.save(model, file)
