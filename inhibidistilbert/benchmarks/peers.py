"""The models that are measured beside each other: a checkpoint, and its peers of the same size."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import DistilBertConfig, PreTrainedConfig, PreTrainedModel

from ..modeling import modeling_inhibidistilbert
from ..modeling.configuration_inhibidistilbert import InhibiDistilBertConfig
from ..prediction import default_checkpoint
from ..quantization import quantize
from ..support.errors import UserError
from ..support.models import any_weight, check_model_type, has_tokenizer, load_config, load_model, load_tokenizer
from ..support.packages import check_packages
from ..support.quiet import quiet_transformers
from ..support.sizes import published_sizes, size_config
from . import engines
from .engines import ENGINES, Graph, Session
from .operators import AUTHORS
from .timing import SEED, Refused

INHIBITOR = "inhibitor"
# Peers by the attention implementation of transformers that they are.
SOFTMAX = {"softmax_sdpa": "sdpa", "softmax_eager": "eager"}
# Softmax DistilBERT compiled by torch.
COMPILED = "torch_compile"
NAMED = (*SOFTMAX, COMPILED, *ENGINES, AUTHORS, INHIBITOR)
INT8 = "int8"
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    INT8: torch.float32,
}


@dataclass(frozen=True)
class Checkpoint:
    """A model that is measured beside its peers.

    Attributes:
        source: a folder, or a size of `hub_configs`, whose weights are random.
        config: its configuration.
        architecture: its class, such as `InhibiDistilBertForSequenceClassification`.
    """

    source: str
    config: InhibiDistilBertConfig
    architecture: str
    weights: str = "random"

    @classmethod
    def load(cls, source: str) -> "Checkpoint":
        """Raises `UserError`: neither a folder of an InhibiDistilBERT checkpoint nor a published size."""
        sizes = published_sizes()
        if source in sizes:
            return cls(source, size_config(source), "InhibiDistilBertModel")
        if not (Path(source) / "config.json").is_file():
            raise UserError(f"CHECKPOINT {source!r} is neither a folder with a config.json nor one of {', '.join(sizes)}.")
        config = load_config(source, f"CHECKPOINT {source!r}")
        check_model_type(config.to_dict(), f"CHECKPOINT {source!r}", "; give it with --against")
        architecture = (config.architectures or ["InhibiDistilBertModel"])[0]
        if _class_of(modeling_inhibidistilbert, architecture, config) is None:
            raise UserError(f"CHECKPOINT {source!r} has the architecture {architecture!r}, which is not known here.")
        return cls(source, config, architecture, weights=source)

    def tokenizer(self) -> Any:
        """Its own, or where the weights are random the shipped checkpoint's. Raises `UserError` where there is none."""
        if self.weights == "random":
            return load_tokenizer(default_checkpoint(), "the shipped checkpoint")
        if not has_tokenizer(self.source):
            raise UserError(f"CHECKPOINT {self.source!r} has no tokenizer, which --text-file needs.")
        return load_tokenizer(self.source, f"CHECKPOINT {self.source!r}")

    def build(self, attention: str) -> nn.Module:
        """The model itself, its weights random where the source has none."""
        model_class = getattr(modeling_inhibidistilbert, self.architecture)
        if self.weights == "random":
            # A copy: the attention implementation is written into it.
            return model_class._from_config(copy.deepcopy(self.config), attn_implementation=attention)
        where = f"CHECKPOINT {self.source!r}"
        options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": attention}
        return load_model(model_class, self.source, where, may_lack=any_weight, **options).model

    def softmax(self, attention: str) -> nn.Module:
        """transformers' DistilBERT of the same size and with the same head, its weights random."""
        fields = {name: value for name, value in self.config.to_dict().items() if name in DistilBertConfig().to_dict()}
        for name in ("architectures", "dtype", "model_type", "transformers_version"):
            fields.pop(name, None)
        model_class = getattr(transformers, self.architecture.removeprefix("Inhibi"))
        return model_class._from_config(DistilBertConfig(**fields), attn_implementation=attention)


@dataclass(frozen=True)
class ModelPeer:
    """A name of `NAMED` or a folder, and the dtype if it is not that of the run: `softmax_sdpa@float32`."""

    name: str
    dtype: str | None = None

    @classmethod
    def parse(cls, text: str) -> "ModelPeer":
        """Raises `UserError`: no such peer, or no such dtype."""
        name, at, dtype = text.rpartition("@")
        peer = cls(name, dtype) if at and dtype in DTYPES else cls(text)
        if peer.name not in NAMED and not (Path(peer.name) / "config.json").is_file():
            raise UserError(
                f"--against must be {', '.join(NAMED)} or a folder with a config.json, with @ and one of "
                f"{', '.join(DTYPES)} behind it for another dtype; got {text!r}."
            )
        if peer.name in ENGINES:
            check_packages(ENGINES[peer.name].packages, f"--against {peer.name}")
        if peer == cls(INHIBITOR):
            raise UserError(f"--against {INHIBITOR} needs a dtype, such as {INHIBITOR}@float32: it is what is measured.")
        return peer

    def __str__(self) -> str:
        return self.name if self.dtype is None else f"{self.name}@{self.dtype}"


def write_graph(checkpoint: Checkpoint, peer: ModelPeer, dtype: str, device: torch.device, folder: Path) -> Graph:
    """A peer of `ENGINES` in a file of the folder, of the same weights as `softmax_sdpa`. Raises `timing.Refused`."""
    if device.type != "cpu":
        raise Refused(f"{peer.name} is measured on processors alone")
    model, config = build(checkpoint, ModelPeer("softmax_sdpa"), "float32", device), checkpoint.config
    engine, positions = ENGINES[peer.name], config.max_position_embeddings
    return engines.write(model, engine, config.vocab_size, positions, folder, peer.dtype or dtype)


def build(checkpoint: Checkpoint, peer: ModelPeer, dtype: str, device: torch.device) -> nn.Module:
    """A peer for inference in `dtype` (its own if it has one) on `device`; the same weights every time.

    Raises `timing.Refused` where there is none in this precision.
    """
    dtype = peer.dtype or dtype
    if dtype == INT8 and peer.name == COMPILED:
        raise Refused("torch.compile makes no int8 form")
    if dtype == INT8 and device.type != "cpu":
        raise Refused("the int8 forms are for processors")
    if checkpoint.config.int8_weights and dtype != INT8 and peer.name in (INHIBITOR, AUTHORS):
        raise Refused("the checkpoint has int8 weights: give --dtype int8")
    torch.manual_seed(SEED)
    with quiet_transformers():
        if peer.name == INHIBITOR:
            model: Any = checkpoint.build("inhibitor")
            if dtype == INT8 and not checkpoint.config.int8_weights:
                model = quantize(model)
        else:
            model = _build_peer(checkpoint, peer.name)
            if dtype == INT8:
                model = with_int8_linears(model)
    model = model.eval().requires_grad_(False).to(device, DTYPES[dtype])
    if peer.name == COMPILED:
        model.compile(fullgraph=True)  # where it gave up it would be eager unseen
    return model


def _build_peer(checkpoint: Checkpoint, name: str) -> nn.Module:
    if name in (*SOFTMAX, COMPILED):
        return checkpoint.softmax(SOFTMAX.get(name, "sdpa"))
    if name == AUTHORS:
        if checkpoint.config.int8_weights:
            raise Refused("the checkpoint has int8 weights, for which this formulation has no layers")
        return checkpoint.build(AUTHORS)
    where = f"--against {name!r}"
    config = load_config(name, where)
    architecture = (config.architectures or [""])[0]
    modules = (transformers, modeling_inhibidistilbert)
    model_class = next(filter(None, (_class_of(module, architecture, config) for module in modules)), None)
    if model_class is None:
        raise UserError(f"--against {name!r} has the architecture {architecture!r}, which is not known here.")
    return load_model(model_class, name, where, may_lack=any_weight, dtype=torch.float32).model


def _class_of(module: Any, name: Any, config: PreTrainedConfig) -> Any:
    """The model class of that name for this configuration; None where the module has none."""
    found = getattr(module, name, None) if isinstance(name, str) else None
    if isinstance(found, type) and issubclass(found, PreTrainedModel) and found.config_class is type(config):
        return found
    return None


def with_int8_linears(model: nn.Module) -> nn.Module:
    """The model with Linear layers that quantise their input on the fly and hold int8 weights."""
    with warnings.catch_warnings():
        # torch announces that torchao will take these over.
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def weight_bytes(model: nn.Module | Session) -> int:
    """Bytes of all weights, those that torch's dynamic quantization packs included; of an engine those of its file."""
    if isinstance(model, Session):
        return model.weight_bytes
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    for module in model.modules():
        if isinstance(module, torch.ao.nn.quantized.dynamic.Linear):
            size += sum(tensor.numel() * tensor.element_size() for tensor in module._weight_bias() if tensor is not None)
    return size
