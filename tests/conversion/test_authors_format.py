"""`convert` on checkpoints of the inhibitor's authors: same outputs as their formulas, and one error for what differs.

The formulas are written out below in float64, from the state dict alone: arXiv 2310.02041 and 2503.15983.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import BertTokenizer, DistilBertConfig

from inhibidistilbert import (
    InhibiDistilBertForMaskedLM,
    InhibiDistilBertForSequenceClassification,
    InhibiDistilBertModel,
    cli,
)
from inhibidistilbert.conversion import StudentOptions, convert_checkpoint, student_from
from inhibidistilbert.support.errors import UserError

LAYERS, HEADS, POSITIONS, VOCABULARY = 3, 2, 12, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film"]
SIZES = {
    "vocab_size": len(VOCABULARY),
    "dim": 16,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "hidden_dim": 24,
    "max_position_embeddings": POSITIONS,
}
# As their training script leaves it: initial scalars and switches of their own code stand in config.json too.
FIELDS = {
    "distance_metric": "manhattan_distance",
    "activation_function": "relu",
    "signed_inhibitor": True,
    "center": True,
    "alpha": 0.5,
    "output_contexts": False,
}
# One value for each layer. Scores that are not centred are all of one sign, so they need a smaller scale.
SCALARS = {"alpha": (0.4, -0.7, 0.9), "beta": (0.1, -0.2, 0.3), "gamma": (0.6, 2.5, -0.8)}
NOT_CENTRED_GAMMA = (0.1, 0.25, -0.12)
ALPHA_OF_LAYER_1 = "transformer.layer.1.attention.alpha (-0.7)"
PADDING = "The source's code averages scores over padding too, the student over real tokens only"


def write_checkpoint(
    folder: Path, task: str = "Model", *, scalars=SCALARS, dtype=torch.float32, file="model.safetensors", **fields
) -> Path:
    """A random checkpoint in the authors' format; `task` is the end of their class's name."""
    torch.manual_seed(1)
    model = getattr(transformers, f"DistilBert{task}")(DistilBertConfig(**SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    # Each tied tensor once, as save_pretrained does.
    weights = {name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
    prefix = "" if task == "Model" else "distilbert."
    for name, values in scalars.items():
        for layer, value in enumerate(values):
            weights[f"{prefix}transformer.layer.{layer}.attention.{name}"] = torch.tensor(value)
    folder.mkdir()
    if file == "model.safetensors":
        save_file(weights, folder / file, metadata={"format": "pt"})
    else:
        torch.save(weights, folder / file)
    config = model.config.to_dict() | FIELDS | {"architectures": [f"iDistilBert{task}"]} | fields
    (folder / "config.json").write_text(json.dumps(config))
    BertTokenizer(vocab={token: index for index, token in enumerate(VOCABULARY)}).save_pretrained(folder)
    return folder


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-12)


def formula_attention(weights: dict[str, Tensor], name: str, x: Tensor, signed: bool, center: bool) -> tuple[Tensor, float]:
    """The authors' attention of `x` `(B, N, dim)`, and the share of terms that inhibition lets through."""
    q, k, v = (linear(weights, f"{name}.{part}_lin", x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in "qkv")
    alpha, beta, gamma = (weights[f"{name}.{scalar}"] for scalar in SCALARS)
    scores = gamma / q.shape[-1] ** 0.5 * (q[..., :, None, :] - k[..., None, :, :]).abs().sum(-1)
    if center:
        scores = scores - scores.mean(-1, keepdim=True)
    if alpha > 0:
        scores = scores + alpha
    z, v = scores.relu()[..., None], v[..., None, :, :]
    terms = (v.relu() - z).relu() - ((-v).relu() - z).relu() if signed else (v - z).relu()
    context = beta * terms.sum(-2)
    return linear(weights, f"{name}.out_lin", context.transpose(1, 2).flatten(-2)), (terms != 0).double().mean().item()


def formula_encoder(folder: Path, ids: Tensor, signed: bool, center: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    """All hidden states in float64 of unpadded `ids`, and the weights without the encoder's prefix."""
    weights = {name.removeprefix("distilbert."): w.double() for name, w in load_file(folder / "model.safetensors").items()}
    words, positions = (weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position"))
    x = layer_norm(weights, "embeddings.LayerNorm", words[ids] + positions[: ids.shape[1]])
    hidden_states = [x]
    for layer in (f"transformer.layer.{i}" for i in range(LAYERS)):
        attended, share = formula_attention(weights, f"{layer}.attention", x, signed, center)
        assert 0.2 < share < 0.8, "too much or too little is inhibited for the comparison to mean anything"
        x = layer_norm(weights, f"{layer}.sa_layer_norm", attended + x)
        x = layer_norm(
            weights,
            f"{layer}.output_layer_norm",
            x + linear(weights, f"{layer}.ffn.lin2", F.gelu(linear(weights, f"{layer}.ffn.lin1", x))),
        )
        hidden_states.append(x)
    return hidden_states, weights


def assert_equals_formula(ours: Tensor, formula: Tensor) -> None:
    """The bound of every fp32 backend: relative RMS error below 1e-5."""
    error = (ours.double() - formula).square().mean().sqrt() / formula.square().mean().sqrt()
    assert error < 1e-5


def token_ids(length: int = POSITIONS) -> Tensor:
    return torch.randint(0, len(VOCABULARY), (3, length))


def run(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line as a shell would call it."""
    monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "convert", *map(str, arguments)])
    cli.main()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("authors") / "original")


@pytest.fixture
def source(original: Path, tmp_path: Path) -> Path:
    """A checkpoint of the bare encoder, to be damaged."""
    return shutil.copytree(original, tmp_path / "source")


# What the student computes


@pytest.mark.parametrize("per_head", [False, True], ids=["per-layer", "per-head"])
@pytest.mark.parametrize("center", [True, False], ids=["centred", "not-centred"])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@torch.no_grad()
def test_hidden_states_equal_the_formulas(tmp_path, signed, center, per_head):
    scalars = SCALARS if center else SCALARS | {"gamma": NOT_CENTRED_GAMMA}
    source = write_checkpoint(tmp_path / "source", scalars=scalars, signed_inhibitor=signed, center=center)
    convert_checkpoint(source, tmp_path / "student", StudentOptions(scalars_per_head=per_head))
    student = InhibiDistilBertModel.from_pretrained(tmp_path / "student")
    ids = token_ids()
    expected, _ = formula_encoder(source, ids, signed, center)
    found = student(ids, output_hidden_states=True).hidden_states
    assert len(found) == len(expected) == LAYERS + 1
    for ours, formula in zip(found, expected, strict=True):
        assert_equals_formula(ours, formula)


@torch.no_grad()
def test_class_scores_equal_the_formulas(tmp_path):
    source = write_checkpoint(tmp_path / "source", "ForSequenceClassification")
    student, _ = student_from(source)
    ids = token_ids(length=7)
    hidden_states, weights = formula_encoder(source, ids, signed=True, center=True)
    pooled = linear(weights, "pre_classifier", hidden_states[-1][:, 0]).relu()
    assert type(student) is InhibiDistilBertForSequenceClassification
    assert_equals_formula(student(ids).logits, linear(weights, "classifier", pooled))


@torch.no_grad()
def test_word_scores_equal_the_formulas(tmp_path):
    source = write_checkpoint(tmp_path / "source", "ForMaskedLM")
    student, _ = student_from(source)
    ids = token_ids()
    hidden_states, weights = formula_encoder(source, ids, signed=True, center=True)
    transformed = layer_norm(weights, "vocab_layer_norm", F.gelu(linear(weights, "vocab_transform", hidden_states[-1])))
    words = weights["embeddings.word_embeddings.weight"]
    assert type(student) is InhibiDistilBertForMaskedLM
    assert_equals_formula(student(ids).logits, transformed @ words.T + weights["vocab_projector.bias"])


@torch.no_grad()
def test_alpha_that_is_not_positive_means_0(tmp_path):
    """Their code adds alpha to the scores only where it is positive."""
    scalars = SCALARS | {"alpha": (0.0, -0.7, -5.0)}
    student, report = student_from(write_checkpoint(tmp_path / "source", scalars=scalars))
    assert [layer.attention.alpha.tolist() for layer in student.transformer.layer] == [[0], [0], [0]]
    (warning,) = (warning for warning in report.warnings if "alpha" in warning)
    names = ", ".join(f"transformer.layer.{i}.attention.alpha ({value})" for i, value in enumerate(("0", "-0.7", "-5")))
    assert warning == f"The source's code adds no alpha that is not positive, so it is 0: {names}."


# What becomes of each parameter, and of the configuration


def test_report(original):
    student, report = student_from(original)
    assert (report.source_class, report.student_class) == ("DistilBertModel", "InhibiDistilBertModel")
    assert set(report.copied) == set(load_file(original / "model.safetensors")) == set(dict(student.named_parameters()))
    assert report.new == report.left_out == []
    assert (report.parameters_copied, report.parameters_new) == (student.num_parameters(), 0)
    alpha, padding = report.warnings
    assert ALPHA_OF_LAYER_1 in alpha
    assert padding.startswith(PADDING)


def test_mean_over_padding_is_no_matter_without_centring(tmp_path):
    _, report = student_from(write_checkpoint(tmp_path / "source", center=False))
    assert not [warning for warning in report.warnings if "padding" in warning]


def test_scalars_go_with_their_layers(original):
    student, report = student_from(original, StudentOptions(layers=[2, 0]))
    for name, values in SCALARS.items():
        found = [getattr(layer.attention, name) for layer in student.transformer.layer]
        torch.testing.assert_close(found, [torch.tensor([values[2]]), torch.tensor([values[0]])])
    assert "transformer.layer.1.attention.alpha" in report.left_out
    assert not [warning for warning in report.warnings if ALPHA_OF_LAYER_1 in warning]


def test_scalars_per_head_repeat_the_layers(original):
    student, report = student_from(original, StudentOptions(scalars_per_head=True))
    assert student.transformer.layer[2].attention.gamma.tolist() == [pytest.approx(-0.8)] * HEADS
    assert report.new == []


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("center", [True, False], ids=["centred", "not-centred"])
def test_configuration_is_carried_over(source, signed, center):
    edit_config(source, signed_inhibitor=signed, center=center)
    config = student_from(source)[0].config
    assert (config.signed, config.centered, config.length_normalization) == (signed, center, "none")
    assert (config.dim, config.n_layers, config.n_heads) == (16, LAYERS, HEADS)
    assert not config.scalars_per_head


@pytest.mark.parametrize("task", ["ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice"])
def test_distilberts_other_heads_are_copied(tmp_path, task):
    source = write_checkpoint(tmp_path / "source", task, architectures=[f"DistilBert{task}"])
    student, report = student_from(source)
    assert type(student).__name__ == f"InhibiDistilBert{task}"
    assert report.new == report.left_out == []


def test_half_precision_weights_keep_scalars_in_float32(tmp_path):
    student, _ = student_from(write_checkpoint(tmp_path / "source", dtype=torch.float16))
    attention = student.transformer.layer[0].attention
    assert student.dtype == torch.float16
    assert attention.beta.dtype == torch.float32
    assert attention.beta.item() == torch.tensor(0.1).item(), "not rounded to half precision on the way"


# Files


def test_weights_of_the_old_format(original, tmp_path):
    old, report = student_from(write_checkpoint(tmp_path / "source", file="pytorch_model.bin"))
    new, _ = student_from(original)
    assert report.new == []
    assert all(torch.equal(weight, old.state_dict()[name]) for name, weight in new.state_dict().items())


class Trap:
    """Unpickled without care, it makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_code_in_weights_of_the_old_format_is_not_run(source, tmp_path):
    (source / "model.safetensors").unlink()
    torch.save({"trap": Trap(tmp_path / "sprung")}, source / "pytorch_model.bin")
    with pytest.raises(UserError, match="the checkpoint does not load"):
        student_from(source)
    assert not (tmp_path / "sprung").exists()


def test_command_reports_scalars_as_copied(original, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(original, tmp_path / "student", monkeypatch=monkeypatch)
    assert stopped.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "transformer.layer.{0,1,2}.attention.alpha" in printed
    assert "new: 0 tensors, 0 parameters" in printed
    assert ALPHA_OF_LAYER_1 in printed


# Bad input: one error each


def edit_config(folder: Path, **fields) -> None:
    """Set fields of config.json; the value "absent" removes one."""
    file = folder / "config.json"
    edited = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in edited.items() if value != "absent"}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distance_metric": "cosine_distance"}, "'cosine_distance'; only 'manhattan_distance' is supported"),
        ({"distance_metric": "absent"}, "distance_metric None; only 'manhattan_distance'"),
        ({"activation_function": "softmax"}, "activation_function 'softmax'; only 'relu' is supported"),
        ({"activation_function": "gelu"}, "activation_function 'gelu'; only 'relu' is supported"),
        ({"activation_function": "absent"}, "activation_function None; only 'relu'"),
        ({"signed_inhibitor": "absent"}, "signed_inhibitor in its config.json must be true or false, got None"),
        ({"center": "yes"}, "center in its config.json must be true or false, got 'yes'"),
        ({"model_type": "bert"}, "inhibitor fields and model_type 'bert'; they are supported with 'distilbert' only"),
    ],
    ids=lambda value: "=".join(*value.items()) if isinstance(value, dict) else "",
)
def test_configuration_that_is_not_supported(source, fields, message):
    edit_config(source, **fields)
    with pytest.raises(UserError, match=message):
        student_from(source)


def edit_weights(folder: Path, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


GAMMA = "transformer.layer.2.attention.gamma"


def test_missing_scalar_is_named(source):
    edit_weights(source, lambda weights: weights.pop(GAMMA))
    with pytest.raises(UserError, match=f"its weights lack {GAMMA}; give a complete checkpoint"):
        student_from(source)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")], ids=str)
def test_scalar_that_is_not_finite_is_named(source, value):
    edit_weights(source, lambda weights: weights.update({GAMMA: torch.tensor(value)}))
    with pytest.raises(UserError, match=f"{GAMMA} must be finite, got {value}"):
        student_from(source)


def test_scalar_of_another_shape_is_named(source):
    edit_weights(source, lambda weights: weights.update({GAMMA: torch.ones(HEADS)}))
    with pytest.raises(UserError, match=rf"{GAMMA} has shape \(2,\) in the weights but \(\)"):
        student_from(source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha-init", "0.5"], "--alpha-init does not fit SOURCE .*: its weights hold alpha; leave it out"),
        (["--gamma-init", "1"], "--gamma-init does not fit SOURCE .*: its weights hold gamma; leave it out"),
        (["--length-normalization", "sqrt"], "--length-normalization sqrt does not fit SOURCE .*: its sums are not"),
        (["--inhibition", "gate"], "--inhibition gate does not fit SOURCE .*: it has the form of the paper; leave it out"),
        (["--center", "least"], "--center least does not fit SOURCE .*: it has the form of the paper; leave it out"),
        (["--radii", "2"], "--radii 2 does not fit SOURCE .*: it has the form of the paper; leave it out"),
    ],
    ids=lambda value: "=".join(value) if isinstance(value, list) else "",
)
def test_options_that_contradict_the_source(original, tmp_path, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        run(original, tmp_path / "student", *arguments, monkeypatch=monkeypatch)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert re.match(f"error: {message}", error)
    assert error.count("\n") == 1
    assert not (tmp_path / "student").exists()
