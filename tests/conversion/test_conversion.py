"""`inhibidistilbert convert`: what a student shares with its BERT or DistilBERT source, and what a user is told."""

import json
import shutil
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertTokenizer, DistilBertConfig

from inhibidistilbert import (
    InhibiDistilBertForMaskedLM,
    InhibiDistilBertForQuestionAnswering,
    InhibiDistilBertForSequenceClassification,
    InhibiDistilBertForTokenClassification,
    InhibiDistilBertModel,
    cli,
)
from inhibidistilbert.conversion import StudentOptions, bert_to_distilbert, convert_checkpoint, student_from
from inhibidistilbert.modeling import modeling_inhibidistilbert
from inhibidistilbert.support.errors import UserError
from tests.helpers.hub import LoopbackHub

LAYERS, POSITIONS, VOCABULARY = 4, 12, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film"]
LABELS = {"id2label": {0: "BAD", 1: "SO_SO", 2: "GOOD"}, "label2id": {"BAD": 0, "SO_SO": 1, "GOOD": 2}}
BERT = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": POSITIONS,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.15,
    "attention_probs_dropout_prob": 0.25,
    "initializer_range": 0.03,
}
DISTILBERT = {
    "vocab_size": len(VOCABULARY),
    "dim": 16,
    "n_layers": LAYERS,
    "n_heads": 2,
    "hidden_dim": 24,
    "max_position_embeddings": POSITIONS,
    "activation": "relu",
    "seq_classif_dropout": 0.35,
}
LAYER_PARAMETERS = [
    f"{module}.{kind}"
    for module in (
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
        "output_layer_norm",
    )
    for kind in ("weight", "bias")
]
BERT_LAYER_PARAMETERS = [
    f"{module}.{kind}"
    for module in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    )
    for kind in ("weight", "bias")
]
EMBEDDING_PARAMETERS = ["word_embeddings.weight", "position_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias"]


def encoder_parameters(layers: int, prefix: str = "") -> set[str]:
    """Names of all that an encoder of DistilBERT's shape has."""
    names = {f"{prefix}embeddings.{name}" for name in EMBEDDING_PARAMETERS}
    return names | {f"{prefix}transformer.layer.{i}.{name}" for i in range(layers) for name in LAYER_PARAMETERS}


def scalar_parameters(layers: int, prefix: str = "") -> set[str]:
    return {f"{prefix}transformer.layer.{i}.attention.{name}" for i in range(layers) for name in ("alpha", "beta", "gamma")}


def write_source(folder: Path, class_name: str, tokenizer: bool = True, **fields) -> Path:
    """A tiny checkpoint of that class, no parameter of which has a value that another could stand in for."""
    torch.manual_seed(1)
    if class_name.startswith("Bert"):
        config = BertConfig(**{**BERT, **LABELS, **fields})
    else:
        config = DistilBertConfig(**{**DISTILBERT, **LABELS, **fields})
    model = getattr(transformers, class_name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(folder)
    if tokenizer:
        BertTokenizer(vocab={token: index for index, token in enumerate(VOCABULARY)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory):
    """`sources("BertModel")`: a folder with such a checkpoint, made once."""
    root, made = tmp_path_factory.mktemp("sources"), {}

    def source(class_name: str) -> Path:
        if class_name not in made:
            made[class_name] = write_source(root / class_name, class_name)
        return made[class_name]

    return source


@pytest.fixture
def bert(sources, tmp_path: Path) -> Path:
    """A copy of a BERT checkpoint, to be damaged."""
    return shutil.copytree(sources("BertModel"), tmp_path / "bert")


def edit_config(folder: Path, **fields) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def edit_weights(folder: Path, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load_encoder(folder: Path, class_name: str) -> nn.Module:
    return getattr(transformers, class_name).from_pretrained(folder).base_model


def feed_forward(source: nn.Module, layer: int, hidden_states: Tensor) -> Tensor:
    """The source's feed-forward network without what surrounds it."""
    if isinstance(source, transformers.BertModel):
        block = source.encoder.layer[layer]
        return block.output.dense(block.intermediate(hidden_states))
    return source.transformer.layer[layer].ffn(hidden_states)


# Softmax attention takes a mean already.
NOT_DIVIDED = StudentOptions(length_normalization="none")


def softmax_attention(module, query, key, value, attention_mask, dropout=0.0, **kwargs):
    return nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2), None


def token_ids() -> Tensor:
    return torch.randint(0, len(VOCABULARY), (3, POSITIONS))


def run(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line as a shell would call it."""
    monkeypatch.setattr(sys, "argv", ["inhibidistilbert", "convert", *map(str, arguments)])
    cli.main()


# What the student computes


@pytest.mark.parametrize("layers", [None, [0, 2], [3, 1, 1]], ids=["all", "0,2", "3,1,1"])
@pytest.mark.parametrize("class_name", ["BertModel", "DistilBertModel", "BertForMaskedLM", "DistilBertForMaskedLM"])
@torch.no_grad()
def test_embeddings_and_feed_forward_activations_equal_the_source(sources, class_name, layers):
    source = load_encoder(sources(class_name), class_name)
    student = student_from(sources(class_name), StudentOptions(layers=layers))[0].base_model
    ids = token_ids()
    torch.testing.assert_close(student.embeddings(ids), source.embeddings(ids), rtol=0, atol=3e-6)
    # Copied into fresh memory: a matrix product may round by how a file's bytes happen to lie.
    student, source = deepcopy(student), deepcopy(source)
    chosen = range(LAYERS) if layers is None else layers
    assert len(student.transformer.layer) == len(chosen)
    for place, layer in enumerate(chosen):
        hidden_states = torch.randn(3, POSITIONS, 16)
        ours = student.transformer.layer[place].ffn(hidden_states)
        assert torch.equal(ours, feed_forward(source, layer, hidden_states))


@pytest.mark.parametrize(
    ("class_name", "output"),
    [
        ("BertModel", "last_hidden_state"),
        ("BertForMaskedLM", "logits"),
        ("BertForTokenClassification", "logits"),
        ("DistilBertModel", "last_hidden_state"),
        ("DistilBertForMaskedLM", "logits"),
        ("DistilBertForSequenceClassification", "logits"),
        ("DistilBertForTokenClassification", "logits"),
    ],
)
@torch.no_grad()
def test_with_softmax_attention_in_place_the_student_is_its_source(sources, class_name, output, monkeypatch):
    monkeypatch.setitem(modeling_inhibidistilbert.ALL_ATTENTION_FUNCTIONS, "inhibitor", softmax_attention)
    source = getattr(transformers, class_name).from_pretrained(sources(class_name))
    student, _ = student_from(sources(class_name), NOT_DIVIDED)
    ids = token_ids()
    torch.testing.assert_close(getattr(student(ids), output), getattr(source(ids), output), rtol=0, atol=2e-5)


@torch.no_grad()
def test_untied_masked_language_modelling_head(tmp_path, monkeypatch):
    monkeypatch.setitem(modeling_inhibidistilbert.ALL_ATTENTION_FUNCTIONS, "inhibitor", softmax_attention)
    folder = write_source(tmp_path / "source", "BertForMaskedLM", tie_word_embeddings=False)
    source = transformers.BertForMaskedLM.from_pretrained(folder)
    student, report = student_from(folder, NOT_DIVIDED)
    ids = token_ids()
    assert not torch.equal(student.vocab_projector.weight, student.get_input_embeddings().weight)
    torch.testing.assert_close(student(ids).logits, source(ids).logits, rtol=0, atol=2e-5)
    assert "cls.predictions.bias" in report.left_out, "the bias the source does not compute with"


def test_scalars_start_at_their_options(sources):
    options = StudentOptions(scalars_per_head=True, alpha_init=-0.25, beta_init=0.125, gamma_init=2)
    student, _ = student_from(sources("BertModel"), options)
    for layer in student.transformer.layer:
        assert layer.attention.alpha.tolist() == [-0.25, -0.25]
        assert layer.attention.beta.tolist() == [0.125, 0.125]
        assert layer.attention.gamma.tolist() == [2, 2]


@pytest.mark.parametrize(("normalization", "beta"), [(None, 1.5), ("mean", 1.5), ("sqrt", 0.3), ("none", 0.06)])
def test_beta_starts_at_what_fits_the_normalization(sources, normalization, beta):
    """Sums over the 25 keys of a sentence are of one size: 1.5 / 25 of a key's each, 0.3 / 5, 0.06."""
    student, _ = student_from(sources("BertModel"), StudentOptions(length_normalization=normalization))
    assert student.config.length_normalization == (normalization or "mean")
    assert student.config.beta_init == beta
    assert all(layer.attention.beta.eq(beta).all() for layer in student.transformer.layer)


@pytest.mark.parametrize(
    ("options", "alpha", "beta"),
    [
        ({"inhibition": "gate", "center": "least", "length_normalization": "passed"}, -0.5, 1.0),
        ({"inhibition": "gate", "center": "least", "length_normalization": "passed", "radii": 2}, [-0.5, 0.1], 1.0),
        ({"inhibition": "gate"}, 0.0, 1.5),
        ({"center": "least"}, 0.0, 1.5),
        ({"radii": 2, "beta_init": [2.0, 0.5]}, [0.5, 1.1], [2.0, 0.5]),
        ({"inhibition": "gate", "radii": 2, "alpha_init": 0.25}, 0.25, 1.5),
    ],
    ids=str,
)
def test_scalars_start_at_what_fits_the_form(sources, options, alpha, beta):
    student, _ = student_from(sources("BertModel"), StudentOptions(scalars_per_head=False, **options))
    config, attention = student.config, student.transformer.layer[1].attention
    assert (config.alpha_init, config.beta_init, config.gamma_init, config.delta_init) == (alpha, beta, 1.0, 1.0)
    assert {name: getattr(config, name) for name in options} == options
    radii = options.get("radii", 1)
    for name, init in (("alpha", alpha), ("beta", beta)):
        expected = torch.tensor(init if isinstance(init, list) else [init] * radii)
        assert torch.equal(getattr(attention, name).flatten(), expected)
    assert (attention.delta is not None) == ("length_normalization" in options)
    assert student(token_ids()).last_hidden_state.isfinite().all()


def test_state_dict_alone_is_rekeyed_with_segment_0_folded_in(sources):
    weights = load_file(sources("BertModel") / "model.safetensors")
    ours = bert_to_distilbert(weights, [3])
    assert ours.keys() == encoder_parameters(layers=1)
    folded = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    assert torch.equal(ours["embeddings.position_embeddings.weight"], folded)
    assert ours["transformer.layer.0.sa_layer_norm.bias"] is weights["encoder.layer.3.attention.output.LayerNorm.bias"]


# What becomes of each parameter, and of the configuration


def test_report_of_a_bert_encoder(sources):
    student, report = student_from(sources("BertModel"), StudentOptions(layers=[0, 2]))
    assert type(student) is InhibiDistilBertModel
    assert set(report.copied) == encoder_parameters(layers=2)
    assert set(report.new) == scalar_parameters(layers=2)
    assert set(report.left_out) == {
        "embeddings.token_type_embeddings.weight",
        "pooler.dense.weight",
        "pooler.dense.bias",
        *(f"encoder.layer.{layer}.{name}" for layer in (1, 3) for name in BERT_LAYER_PARAMETERS),
    }
    assert report.layers == [0, 2]
    assert report.source_layers == LAYERS
    assert report.parameters_new == 12, "alpha, beta and gamma of 2 heads in 2 layers"
    assert report.parameters_copied + report.parameters_new == student.num_parameters()
    assert report.warnings == [
        "Pair inputs lose their segments: token_type_ids are not supported, every token gets segment embedding 0."
    ]


@pytest.mark.parametrize("class_name", ["BertForMaskedLM", "BertForPreTraining"])
def test_report_of_a_masked_language_model(sources, class_name):
    student, report = student_from(sources(class_name))
    assert type(student) is InhibiDistilBertForMaskedLM
    head = ["vocab_transform.weight", "vocab_transform.bias", "vocab_layer_norm.weight", "vocab_layer_norm.bias"]
    # The projection's weight is the word embeddings.
    assert set(report.copied) == encoder_parameters(LAYERS, "distilbert.") | {*head, "vocab_projector.bias"}
    assert set(report.new) == scalar_parameters(LAYERS, "distilbert.")
    next_sentence = {"cls.seq_relationship.weight", "cls.seq_relationship.bias"}
    pooler = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    dropped = next_sentence | pooler if class_name == "BertForPreTraining" else set()
    assert set(report.left_out) == {"bert.embeddings.token_type_embeddings.weight"} | dropped


def test_classifier_behind_a_pooler_is_left_out_and_said_so(sources):
    student, report = student_from(sources("BertForSequenceClassification"))
    assert type(student) is InhibiDistilBertForSequenceClassification
    new = {"pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"}
    assert set(report.new) == scalar_parameters(LAYERS, "distilbert.") | new
    assert set(report.left_out) == {
        "bert.embeddings.token_type_embeddings.weight",
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert any("BertForSequenceClassification stands on BERT's pooler" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("class_name", "student_class", "head"),
    [
        (
            "DistilBertForSequenceClassification",
            InhibiDistilBertForSequenceClassification,
            {"pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"},
        ),
        (
            "DistilBertForTokenClassification",
            InhibiDistilBertForTokenClassification,
            {"classifier.weight", "classifier.bias"},
        ),
        ("BertForTokenClassification", InhibiDistilBertForTokenClassification, {"classifier.weight", "classifier.bias"}),
    ],
)
def test_matching_heads_are_copied(sources, class_name, student_class, head):
    student, report = student_from(sources(class_name))
    assert type(student) is student_class
    assert set(report.copied) == encoder_parameters(LAYERS, "distilbert.") | head
    weights = load_file(sources(class_name) / "model.safetensors")
    assert all(torch.equal(student.state_dict()[name], weights[name]) for name in head)
    if class_name.startswith("DistilBert"):
        assert report.left_out == report.warnings == []


def test_question_answering_head_is_copied(tmp_path):
    labels = {"id2label": {0: "start", 1: "end"}, "label2id": {"start": 0, "end": 1}}
    student, report = student_from(write_source(tmp_path / "qa", "BertForQuestionAnswering", **labels))
    assert type(student) is InhibiDistilBertForQuestionAnswering
    assert {"qa_outputs.weight", "qa_outputs.bias"} <= set(report.copied)


def test_no_head_gives_the_bare_encoder(sources):
    student, report = student_from(sources("DistilBertForSequenceClassification"), StudentOptions(head=False))
    assert type(student) is InhibiDistilBertModel
    assert set(report.copied) == encoder_parameters(LAYERS)
    assert report.left_out == ["classifier.bias", "classifier.weight", "pre_classifier.bias", "pre_classifier.weight"]


def test_unknown_head_is_left_out(bert):
    edit_config(bert, architectures=["BertWithATwist"])
    edit_weights(bert, lambda weights: weights.update({"twist.weight": torch.ones(2)}))
    student, report = student_from(bert)
    assert type(student) is InhibiDistilBertModel
    assert "twist.weight" in report.left_out


def test_indices_stored_by_old_checkpoints_are_not_reported(bert):
    edit_weights(bert, lambda weights: weights.update({"embeddings.position_ids": torch.arange(POSITIONS)[None]}))
    _, report = student_from(bert)
    assert "embeddings.position_ids" not in report.left_out


def test_encoder_without_pooler_needs_none(bert):
    edit_weights(bert, lambda weights: [weights.pop(f"pooler.dense.{kind}") for kind in ("weight", "bias")])
    _, report = student_from(bert)
    assert not [name for name in report.left_out if "pooler" in name]


def test_other_layer_norm_epsilon_is_warned_about(bert):
    edit_config(bert, layer_norm_eps=1e-5)
    assert any("layer_norm_eps is 1e-05" in warning for warning in student_from(bert)[1].warnings)


def test_configuration_is_carried_over(tmp_path):
    fields = {"pad_token_id": 3, "problem_type": "multi_label_classification", "classifier_dropout": 0.45}
    source = write_source(tmp_path / "source", "BertForSequenceClassification", **fields)
    config = student_from(source, StudentOptions(layers=[1], length_normalization="sqrt"))[0].config
    assert config.id2label == LABELS["id2label"]
    assert config.label2id == LABELS["label2id"]
    assert (config.pad_token_id, config.problem_type) == (3, "multi_label_classification")
    assert (config.dropout, config.attention_dropout, config.seq_classif_dropout) == (0.15, 0.25, 0.45)
    assert (config.activation, config.initializer_range) == ("relu", 0.03)
    assert (config.dim, config.hidden_dim, config.n_heads, config.n_layers) == (16, 24, 2, 1)
    assert (config.max_position_embeddings, config.length_normalization) == (POSITIONS, "sqrt")


def test_distilbert_configuration_is_carried_over(sources):
    config = student_from(sources("DistilBertForSequenceClassification"))[0].config
    assert (config.n_layers, config.activation, config.seq_classif_dropout) == (LAYERS, "relu", 0.35)
    assert config.id2label == LABELS["id2label"]


# The folder written


def test_folder_loads_with_its_head(sources, tmp_path):
    source = sources("DistilBertForSequenceClassification")
    convert_checkpoint(source, tmp_path / "student")
    loaded, info = InhibiDistilBertForSequenceClassification.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    student, _ = student_from(source)
    ids = token_ids()
    assert all(torch.equal(weight, student.state_dict()[name]) for name, weight in loaded.state_dict().items())
    # Copied into fresh memory: a matrix product may round by how a file's bytes happen to lie.
    assert torch.equal(deepcopy(loaded)(ids).logits, deepcopy(student)(ids).logits)
    assert (tmp_path / "student" / "modeling_inhibidistilbert.py").is_file()


@pytest.mark.parametrize("class_name", ["BertModel", "DistilBertModel"])
def test_tokenizer_emits_no_segments_and_knows_the_positions(sources, tmp_path, class_name):
    assert "token_type_ids" in AutoTokenizer.from_pretrained(sources("BertModel"))("a film", "good")
    convert_checkpoint(sources(class_name), tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert set(tokenizer("a film", "good")) == {"input_ids", "attention_mask"}
    assert tokenizer.model_max_length == POSITIONS
    assert len(tokenizer("good " * 50, truncation=True).input_ids) == POSITIONS
    assert tokenizer.tokenize("a good film") == ["a", "good", "film"]


def test_source_without_tokenizer_is_warned_about(tmp_path):
    source = write_source(tmp_path / "source", "BertModel", tokenizer=False)
    report = convert_checkpoint(source, tmp_path / "student")
    assert any("no tokenizer" in warning for warning in report.warnings)
    assert not list((tmp_path / "student").glob("*token*"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_of_the_weights_leaves_the_scalars_in_float32(sources, tmp_path, dtype):
    convert_checkpoint(sources("BertModel"), tmp_path / "student", StudentOptions(dtype=dtype))
    weights = load_file(tmp_path / "student" / "model.safetensors")
    found = {(name.endswith(("alpha", "beta", "gamma")), tensor.dtype) for name, tensor in weights.items()}
    assert found == {(True, torch.float32), (False, getattr(torch, dtype))}


def test_dtype_of_the_source_is_kept(tmp_path):
    source = write_source(tmp_path / "source", "DistilBertModel")
    transformers.DistilBertModel.from_pretrained(source).half().save_pretrained(source)
    student, _ = student_from(source)
    weights = load_file(source / "model.safetensors")
    assert student.dtype == torch.float16
    assert all(torch.equal(student.state_dict()[name], weight) for name, weight in weights.items())


def test_sharded_source(sources, tmp_path):
    model = transformers.BertModel.from_pretrained(sources("BertModel"))
    model.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    shards, _ = student_from(tmp_path / "shards")
    whole, _ = student_from(sources("BertModel"))
    assert all(torch.equal(weight, shards.state_dict()[name]) for name, weight in whole.state_dict().items())


def failing_after_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(model, folder):
        Path(folder, "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(modeling_inhibidistilbert.InhibiDistilBertPreTrainedModel, "save_pretrained", save)


def test_interrupted_conversion_leaves_nothing(sources, tmp_path, monkeypatch):
    failing_after_the_weights(monkeypatch)
    with pytest.raises(OSError, match="disk full"):
        convert_checkpoint(sources("BertModel"), tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_overwrite_leaves_the_old_checkpoint(sources, tmp_path, monkeypatch):
    output = shutil.copytree(sources("DistilBertModel"), tmp_path / "student")
    failing_after_the_weights(monkeypatch)
    with pytest.raises(OSError, match="disk full"):
        convert_checkpoint(sources("BertModel"), output, overwrite=True)
    assert list(tmp_path.iterdir()) == [output]
    assert json.loads((output / "config.json").read_text())["model_type"] == "distilbert"


def test_folder_that_cannot_be_renamed_brings_the_old_checkpoint_back(sources, tmp_path, monkeypatch):
    output = shutil.copytree(sources("DistilBertModel"), tmp_path / "student")
    rename = Path.rename

    def only_the_old(path: Path, target: Path):
        if path.name == "new":
            raise OSError("busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", only_the_old)
    with pytest.raises(OSError, match="busy"):
        convert_checkpoint(sources("BertModel"), output, overwrite=True)
    assert list(tmp_path.iterdir()) == [output]
    assert json.loads((output / "config.json").read_text())["model_type"] == "distilbert"


def test_overwrite_replaces_the_whole_folder(sources, tmp_path):
    output = shutil.copytree(sources("DistilBertModel"), tmp_path / "student")
    (output / "stale.txt").touch()
    with pytest.raises(UserError, match=r"not empty.*--overwrite"):
        convert_checkpoint(sources("BertModel"), output)
    convert_checkpoint(sources("BertModel"), output, overwrite=True)
    assert not (output / "stale.txt").exists()
    assert json.loads((output / "config.json").read_text())["model_type"] == "inhibidistilbert"
    assert list(tmp_path.iterdir()) == [output]


def test_empty_output_folder_is_used(sources, tmp_path):
    (tmp_path / "student").mkdir()
    convert_checkpoint(sources("BertModel"), tmp_path / "student")
    assert (tmp_path / "student" / "config.json").is_file()


# Bad input: one error each


def test_overwrite_spares_folders_that_are_no_checkpoint(sources, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"no config\.json; --overwrite replaces checkpoints only"):
        convert_checkpoint(sources("BertModel"), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("place", ["bert", "."], ids=["same", "parent"])
def test_output_over_the_source(bert, tmp_path, place):
    with pytest.raises(UserError, match="holds the source"):
        convert_checkpoint(bert, tmp_path / place, overwrite=True)


@pytest.mark.parametrize(("place", "message"), [("taken", "is a file"), ("taken/student", "cannot be made")])
def test_output_that_cannot_be_a_folder(sources, tmp_path, place, message):
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match=f"OUTPUT_DIR .*{message}"):
        convert_checkpoint(sources("BertModel"), tmp_path / place)


def test_source_without_config(tmp_path):
    with pytest.raises(UserError, match=r"SOURCE .*: the folder has no config\.json"):
        student_from(tmp_path)


def test_source_that_is_a_file(bert):
    with pytest.raises(UserError, match="is a file; give the folder"):
        student_from(bert / "config.json")


def test_source_that_is_neither_a_folder_nor_a_hub_id():
    with pytest.raises(UserError, match="'no/such/folder' is not a folder, and could not be read from the Hub"):
        student_from("no/such/folder")


def test_config_that_is_no_json(bert):
    (bert / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        student_from(bert)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "roberta"}, "has model_type 'roberta'; supported are distilbert, bert"),
        ({"model_type": None}, "has model_type None; supported are distilbert, bert"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'; only 'absolute'"),
        ({"is_decoder": True}, "decoder"),
        ({"add_cross_attention": True}, "decoder"),
        ({"architectures": ["BertLMHeadModel"]}, "decoder"),
        ({"num_attention_heads": 3}, "3 heads and hidden size 16"),
        ({"hidden_size": "wide"}, r"config\.json is not valid: .*'hidden_size'"),
        ({"hidden_act": "swoosh"}, "the checkpoint does not load: .*swoosh"),
        ({"pad_token_id": 99}, "the checkpoint does not load: .*[Pp]adding_idx"),
        ({"intermediate_size": 32}, r"shape \(24,?.*\) in the weights but \(32,?.*\) by config\.json"),
        ({"num_hidden_layers": 5}, r"its weights lack encoder\.layer\.4\..* and 12 more"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configuration_that_does_not_fit(bert, fields, message):
    edit_config(bert, **fields)
    with pytest.raises(UserError, match=message):
        student_from(bert)


@pytest.mark.parametrize(
    "name",
    ["embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight", "encoder.layer.2.output.dense.bias"],
)
def test_missing_weights_are_named(bert, name):
    edit_weights(bert, lambda weights: weights.pop(name))
    with pytest.raises(UserError, match=f"its weights lack {name}; give a complete checkpoint"):
        student_from(bert)


def test_missing_layer_that_is_not_chosen_is_no_error(bert):
    edit_config(bert, num_hidden_layers=LAYERS + 1)
    _, report = student_from(bert, StudentOptions(layers=[0, 1]))
    assert not [name for name in report.left_out if name.startswith("encoder.layer.4.")]


@pytest.mark.parametrize("content", [None, b"", b"no safetensors"], ids=["no-file", "empty", "damaged"])
def test_unreadable_weights(bert, content):
    (bert / "model.safetensors").unlink()
    if content is not None:
        (bert / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="the checkpoint does not load"):
        student_from(bert)


def test_damaged_weights_of_the_old_format(bert):
    (bert / "model.safetensors").unlink()
    (bert / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(UserError, match="the checkpoint does not load"):
        student_from(bert)


def test_question_answering_with_three_labels(tmp_path):
    with pytest.raises(UserError, match=r"num_labels must be 2 .* got 3"):
        student_from(write_source(tmp_path / "qa", "BertForQuestionAnswering"))


def test_damaged_tokenizer(bert, tmp_path):
    (bert / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="its tokenizer cannot be read"):
        convert_checkpoint(bert, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_code_beside_the_source_is_not_run(bert, tmp_path):
    (bert / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Trap: pass\n")
    edit_config(bert, auto_map={"AutoConfig": "trap.Trap", "AutoModel": "trap.Trap", "AutoTokenizer": ["trap.Trap", None]})
    convert_checkpoint(bert, tmp_path / "student")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "student" / "trap.py").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "0,4"], "--layers must be one or more integers from 0 to 3"),
        (["--layers", "-1"], "--layers must be one or more integers from 0 to 3"),
        (["--layers", "0,two"], "--layers must be integers separated by commas, such as 0,2,4; got '0,two'"),
        (["--layers", ""], "--layers must be integers"),
        (["--dtype", "int8"], "--dtype must be one of float32, float16, bfloat16, got 'int8'"),
        (["--length-normalization", "cube"], "--length-normalization must be one of none, sqrt, mean, passed, got 'cube'"),
        (["--inhibition", "door"], "--inhibition must be one of threshold, gate, got 'door'"),
        (["--center", "median"], "--center must be one of mean, least, got 'median'"),
        (["--radii", "0"], "--radii must be an integer of at least 1, got 0"),
        (["--alpha-init", "nan"], "--alpha-init must be a finite number, got nan"),
        (
            ["--alpha-init", "1,x"],
            "--alpha-init must be a number, or several with commas between, such as -0.5,0.1; got '1,x'",
        ),
        (["--radii", "2", "--beta-init", "1,inf"], "--beta-init must be a finite number, got [1.0, inf]"),
        (
            ["--radii", "2", "--alpha-init", "1,2,3"],
            "--alpha-init must be a number, or one for each of 2 radii (--radii), got [1.0, 2.0, 3.0]",
        ),
        (["--delta-init", "1"], "--delta-init needs --length-normalization passed"),
        (["--gamma-init", "inf"], "--gamma-init must be a finite number, got inf"),
    ],
    ids=lambda value: "=".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_one_line_and_exit_code_2(sources, tmp_path, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        run(sources("BertModel"), tmp_path / "student", *arguments, monkeypatch=monkeypatch)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "student").exists()


# The command


def test_a_form_beyond_the_paper_from_the_command_line(sources, tmp_path, monkeypatch):
    form = ["--inhibition", "gate", "--center", "least", "--radii", "2", "--length-normalization", "passed"]
    inits = ["--alpha-init", "-0.25,0.5", "--gamma-init", "2", "--delta-init", "0.75"]
    with pytest.raises(SystemExit) as stopped:
        run(sources("BertModel"), tmp_path / "student", *form, *inits, monkeypatch=monkeypatch)
    assert stopped.value.code == 0
    attention = InhibiDistilBertModel.from_pretrained(tmp_path / "student").transformer.layer[0].attention
    assert attention.alpha.tolist() == [[-0.25, -0.25], [0.5, 0.5]]
    assert attention.beta.tolist() == [[1, 1], [1, 1]]
    assert attention.gamma.tolist() == [[2, 2], [2, 2]]
    assert attention.delta.tolist() == [0.75, 0.75]


def test_json_is_one_object(sources, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(sources("BertModel"), tmp_path / "student", "--layers", "0,2", "--json", monkeypatch=monkeypatch)
    assert stopped.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["student_class"], printed["layers"]) == ("InhibiDistilBertModel", [0, 2])
    assert set(printed["copied"]) == encoder_parameters(layers=2)
    assert printed["output"] == str(tmp_path / "student")


def test_console_says_what_was_copied_is_new_and_was_left_out(sources, tmp_path, monkeypatch, capsys):
    arguments = [sources("BertForSequenceClassification"), tmp_path / "student", "--layers", "3,0"]
    with pytest.raises(SystemExit):
        run(*arguments, monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert "BertForSequenceClassification → InhibiDistilBertForSequenceClassification, layers 3, 0 of 4" in printed
    assert "copied: 36 tensors" in printed
    assert "distilbert.transformer.layer.{0,1}.attention.alpha" in printed
    assert "left out: 37 tensors" in printed
    assert "bert.encoder.layer.{1,2}.attention.self.query" in printed
    assert "token_type_ids are not supported" in " ".join(printed.split())


def test_new_head_is_the_same_every_time(sources, tmp_path, monkeypatch):
    for name in ("first", "second"):
        with pytest.raises(SystemExit):
            run(sources("BertForSequenceClassification"), tmp_path / name, monkeypatch=monkeypatch)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_source_on_the_hub(sources, tmp_path, monkeypatch, capsys):
    repos = {"someone/bert": {"main": sources("BertModel")}}
    with LoopbackHub(repos) as hub, hub.for_this_process(tmp_path / "cache"), pytest.raises(SystemExit) as exit_:
        run("someone/bert", tmp_path / "student", "--json", monkeypatch=monkeypatch)
    assert not exit_.value.code
    report, local = json.loads(capsys.readouterr().out), student_from(sources("BertModel"))[1]
    assert (report["copied"], report["left_out"]) == (local.copied, local.left_out)
    assert "GET /someone/bert/resolve" in " ".join(hub.requests)
    assert AutoTokenizer.from_pretrained(tmp_path / "student").model_max_length == POSITIONS


def test_unsupported_options_are_named_before_the_source_is_read(monkeypatch):
    reader = "inhibidistilbert.conversion.student.read_source_config"
    monkeypatch.setattr(reader, lambda source: pytest.fail("the source was read"))
    with pytest.raises(UserError, match="--dtype"):
        student_from("anything", StudentOptions(dtype="float8"))
