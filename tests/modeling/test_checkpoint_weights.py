"""Weights that are not those of the model are refused by name; those that it can start from are taken."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from inhibidistilbert import quantize
from tests.helpers.tiny import TASKS, model_class, tiny_distilbert, tiny_model

pytestmark = pytest.mark.portable

TASK = "ForSequenceClassification"
LAYER = "distilbert.transformer.layer.1"
Weights = dict[str, Tensor]


def rewrite(folder: Path, change: Callable[[Weights], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def reconfigure(folder: Path, **fields) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def put(name: str, value: object) -> Callable[[Weights], object]:
    return lambda weights: weights.update({name: torch.as_tensor(value)})


def cast(name: str, dtype: torch.dtype) -> Callable[[Weights], object]:
    return lambda weights: weights.update({name: weights[name].to(dtype)})


def drop(*names: str) -> Callable[[Weights], object]:
    return lambda weights: [weights.pop(name) for name in names]


LINEAR = f"{LAYER}.ffn.lin1"
UNFIT = {
    "of integers": (cast(f"{LINEAR}.weight", torch.int32), f"{LINEAR}.weight .* must be float64, .* torch.int32"),
    "of bools": (cast("classifier.bias", torch.bool), "classifier.bias .* must be float64, .* torch.bool"),
    "int8": (cast(f"{LINEAR}.weight", torch.int8), "torch.int8; for int8 weights config.json must say int8_weights=true"),
    "a scale": (put(f"{LINEAR}.weight_scale", [1.0]), f"holds {LINEAR}.weight_scale, .*int8_weights=False"),
    "unknown in the encoder": (put("distilbert.embeddings.types.weight", [1.0]), "holds distilbert.embeddings.types.weight"),
    "unknown beside it": (put("distilbert.pooler.weight", [1.0]), "holds distilbert.pooler.weight, which"),
    "unknown in the head": (put("classifier.out.weight", [1.0]), "holds classifier.out.weight, which"),
    "two names": (
        put("transformer.layer.1.attention.alpha", [1.0]),
        "one tensor under two names: .*layer.1.attention.alpha",
    ),
    "an older name too": (put("distilbert.embeddings.LayerNorm.gamma", torch.ones(32)), "two names: .*LayerNorm.gamma"),
    "another shape": (put(f"{LINEAR}.bias", torch.ones(3)), rf"{LINEAR}.bias .* has shape \(3,\), .* \(40,\)"),
    "lacking": (drop(f"{LINEAR}.bias"), f"lacks {LINEAR}.bias, which"),
    "lacking a scalar": (drop(f"{LAYER}.attention.alpha"), f"lacks {LAYER}.attention.alpha, which"),
    "lacking half a head": (drop("classifier.weight"), "lacks classifier.weight, which"),
    "lacking a table": (drop("distilbert.embeddings.word_embeddings.weight"), "lacks distilbert.embeddings.word_emb"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_weights_of_another_model_are_refused_by_name(tmp_path, case):
    change, message = UNFIT[case]
    tiny_model(TASK).save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        model_class(TASK).from_pretrained(tmp_path)


@pytest.mark.parametrize("task", TASKS)
def test_more_and_fewer_layers_than_the_configuration_says(tmp_path, task):
    tiny_model(task).save_pretrained(tmp_path)
    reconfigure(tmp_path, n_layers=1)
    with pytest.raises(ValueError, match=r"holds .*layer\.1\..* and \d+ more, .*n_layers=1"):
        model_class(task).from_pretrained(tmp_path)
    reconfigure(tmp_path, n_layers=3)
    with pytest.raises(ValueError, match=r"lacks .*layer\.2\..* and \d+ more, .*n_layers=3"):
        model_class(task).from_pretrained(tmp_path)


INT8_UNFIT = {
    "float": (cast(f"{LINEAR}.weight", torch.float32), f"int8_weights=True, but {LINEAR} .* has no int8 weights"),
    "larger integers": (cast(f"{LINEAR}.weight", torch.int16), f"{LINEAR} .* has no int8 weights; .* torch.int16"),
    "out of range": (lambda weights: weights[f"{LINEAR}.weight"].fill_(-128), f"{LINEAR} .* -127 to 127"),
    "an infinite scale": (
        lambda weights: weights[f"{LINEAR}.weight_scale"].fill_(float("inf")),
        f"{LINEAR} .* positive weight_scales",
    ),
    "no scale": (drop(f"{LINEAR}.weight_scale"), f"lacks {LINEAR}.weight_scale"),
}


@pytest.mark.parametrize("case", INT8_UNFIT)
def test_int8_weights_that_are_none(tmp_path, case):
    change, message = INT8_UNFIT[case]
    quantize(tiny_model(TASK)).save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        model_class(TASK).from_pretrained(tmp_path)


@pytest.mark.parametrize("form", ["shards", "pickle", "state dict"])
def test_in_every_form_that_weights_come_in(tmp_path, form):
    model = tiny_model(TASK)
    weights = model.state_dict() | {"distilbert.transformer.layer.2.ffn.lin1.bias": torch.ones(40)}
    given = {"state_dict": weights, "config": model.config} if form == "state dict" else {}
    if form == "pickle":
        model.config.save_pretrained(tmp_path)
        torch.save(weights, tmp_path / "pytorch_model.bin")
    elif form == "shards":
        model.save_pretrained(tmp_path, state_dict=dict(weights), max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with pytest.raises(ValueError, match=r"holds distilbert\.transformer\.layer\.2\.ffn\.lin1\.bias"):
        type(model).from_pretrained(None if given else tmp_path, **given)
    weights.popitem()
    weights["classifier.bias"] = weights["classifier.bias"].int()
    if form == "pickle":
        torch.save(weights, tmp_path / "pytorch_model.bin")
    elif form == "shards":
        model.save_pretrained(tmp_path, state_dict=dict(weights), max_shard_size="20KB")
    with pytest.raises(ValueError, match=r"classifier.bias .* got torch.int32"):
        type(model).from_pretrained(None if given else tmp_path, **given)


# The head of the first, in a model of the second: the body starts from there, the head anew where it is another.
STARTS = [("ForMaskedLM", TASK), (TASK, "ForMaskedLM"), (TASK, "Model"), ("Model", TASK), ("ForQuestionAnswering", TASK)]


@pytest.mark.parametrize("make", [tiny_model, tiny_distilbert])
@pytest.mark.parametrize(("stored", "wanted"), STARTS, ids=lambda task: task)
def test_what_a_model_may_start_from(tmp_path, make, stored, wanted):
    model = make(stored)
    model.save_pretrained(tmp_path)
    loaded = model_class(wanted).from_pretrained(tmp_path)
    weights = loaded.base_model.state_dict()
    for name, tensor in model.base_model.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_position_ids_of_older_checkpoints_and_float16_are_taken(tmp_path):
    model = tiny_model(TASK)
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, put("distilbert.embeddings.position_ids", torch.arange(24)[None]))
    rewrite(tmp_path, cast("classifier.weight", torch.float16))
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded.classifier.weight, model.classifier.weight.half().float())


@pytest.mark.parametrize(
    "rename",
    [lambda name: f"distilbert.{name}", lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma")],
    ids=["twice prefixed", "older names"],
)
def test_names_that_transformers_changes_are_of_floating_weights_too(tmp_path, rename):
    model, name = tiny_model(TASK), "distilbert.embeddings.LayerNorm.weight"
    model.save_pretrained(tmp_path)
    weights = {rename(name): weight for name, weight in load_file(tmp_path / "model.safetensors").items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(type(model).from_pretrained(tmp_path).state_dict()[name], model.state_dict()[name])
    rewrite(tmp_path, cast(rename(name), torch.int32))
    with pytest.raises(ValueError, match=r"LayerNorm\..* must be float64, .* got torch.int32"):
        type(model).from_pretrained(tmp_path)


def test_a_head_for_other_labels_starts_anew(tmp_path):
    model = tiny_model(TASK)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert loaded.classifier.weight.shape == (5, 32)
    assert torch.equal(loaded.pre_classifier.weight, model.pre_classifier.weight)
