"""An int8 model is made, saved, loaded without this package, and is as good as the one it comes from."""

import copy
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from inhibidistilbert import quantize
from inhibidistilbert.cli import app
from inhibidistilbert.evaluation import scoring
from inhibidistilbert.kernels.cpu import int8_attention, int8_linear
from inhibidistilbert.modeling.int8_linear import Int8Linear
from inhibidistilbert.prediction import TextClassifier, default_checkpoint
from inhibidistilbert.support.errors import UserError
from tests.helpers.clean_session import run_clean_session
from tests.helpers.remote_client import model_outputs
from tests.helpers.tiny import TASKS, assert_saving_changes_nothing, first_output, tiny_distilbert, tiny_model, tokens
from tests.helpers.tiny_sentiment import write_tiny_checkpoint

TASK = "ForSequenceClassification"


@torch.no_grad()
def outputs(model) -> torch.Tensor:
    input_ids = tokens(2, 2, 9) if "MultipleChoice" in type(model).__name__ else tokens(2, 9)
    mask = torch.ones_like(input_ids)
    mask[1, ..., 6:] = 0
    return first_output(model(input_ids, attention_mask=mask))


def relative_rms(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.float() - want).square().mean() / want.square().mean()).sqrt().item()


@pytest.mark.parametrize("task", TASKS)
def test_every_model_and_what_of_it_is_int8(task):
    model = tiny_model(task)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    int8 = quantize(model)
    assert relative_rms(outputs(int8), outputs(model)) < 0.05
    assert sum(isinstance(module, Int8Linear) for module in int8.modules()) == 2 * 6
    assert (int8.config.quantized, int8.config.int8_weights) == (True, True)
    assert not any(parameter.requires_grad for parameter in int8.parameters())
    # The model itself stays as it is.
    assert (model.config.quantized, model.config.int8_weights) == (False, False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_are_rounded_to_the_nearest_step():
    linear = torch.nn.Linear(40, 30)
    with torch.no_grad():
        linear.weight[3] = 0
    int8 = Int8Linear.from_linear(linear)
    error = (int8.weight * int8.weight_scale[:, None] - linear.weight).abs()
    assert (error <= int8.weight_scale[:, None] * 0.501).all()
    assert int8.weight.abs().amax(1).tolist() == [0 if row == 3 else 127 for row in range(30)]
    assert torch.equal(int8.bias, linear.bias)


def test_the_switches_are_independent():
    model = tiny_model(TASK)
    int8 = quantize(model)
    int8.config.quantized = False
    assert relative_rms(outputs(int8), outputs(model)) < 0.05
    assert not torch.equal(outputs(int8), outputs(quantize(model)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_saved_and_loaded(tmp_path, dtype):
    int8 = quantize(tiny_model(TASK))
    int8.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    name = "distilbert.transformer.layer.0.attention.q_lin"
    assert stored[f"{name}.weight"].dtype == torch.int8
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=dtype).eval()
    layer = loaded.get_submodule(name)
    assert (layer.weight.dtype, layer.weight_scale.dtype, layer.bias.dtype) == (torch.int8, torch.float32, dtype)
    if dtype == torch.float32:
        assert torch.equal(outputs(loaded), outputs(int8))
    assert relative_rms(outputs(loaded), outputs(int8)) < 0.05
    assert torch.equal(outputs(loaded), outputs(quantize(tiny_model(TASK)).to(dtype)))


def test_the_command_tells_sizes_and_scores(tmp_path, monkeypatch, capsys):
    folder = write_tiny_checkpoint(tmp_path / "float", dtype="float16")
    (folder / "README.md").write_text("## Limits and bias")
    data = tmp_path / "data.csv"
    data.write_text("text,label\na good film,POSITIVE\na bad film,NEGATIVE\na dull plot,NEGATIVE\n")
    monkeypatch.setattr(scoring, "RESAMPLES", 10)
    arguments = ["quantize", folder, tmp_path / "int8", "--data", data]
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    found = json.loads(result.stdout)
    stored = [load_file(tmp_path / name / "model.safetensors") for name in ("float", "int8")]
    files = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("float", "int8")]
    assert list(found["bytes"].values()) == files
    assert [result["checkpoint"] for result in found["results"]] == [str(tmp_path / "int8"), str(folder)]
    assert (tmp_path / "int8" / "README.md").read_text() == "## Limits and bias"
    assert (tmp_path / "int8" / "eval_results.json").is_file()
    name = "distilbert.embeddings.word_embeddings.weight"
    assert [each[name].dtype for each in stored] == [torch.float32, torch.float16]
    refused = CliRunner().invoke(app, list(map(str, arguments)))
    assert isinstance(refused.exception, UserError)


def test_embeddings_are_stored_in_half_where_that_changes_nothing(tmp_path):
    int8 = quantize(tiny_model(TASK))
    with torch.no_grad():
        int8.distilbert.embeddings.position_embeddings.weight[0, 0] = 1e-9
    int8.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["distilbert.embeddings.word_embeddings.weight"].dtype == torch.float16
    assert stored["distilbert.embeddings.position_embeddings.weight"].dtype == torch.float32
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in int8.state_dict().items())


@pytest.mark.parametrize("task", TASKS)
def test_saving_changes_nothing(tmp_path, task):
    assert_saving_changes_nothing(quantize(tiny_model(task)).to(torch.bfloat16), tmp_path)


def test_called_where_gradients_are_recorded(tmp_path):
    """It gives what it gives under no_grad, whichever way it came about, and also after `.train()` and `.eval()`."""
    int8 = quantize(tiny_model(TASK))
    int8.save_pretrained(tmp_path)
    loaded = type(int8).from_pretrained(tmp_path)
    empty = type(int8)(int8.config)
    empty.load_state_dict(int8.state_dict())
    for model in (int8, loaded, empty, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        model.train()(tokens(2, 9))
        got = first_output(model.eval()(tokens(2, 9)))
        assert not got.requires_grad
        assert torch.equal(got, first_output(loaded(tokens(2, 9))))


def test_a_gradient_that_int8_attention_cannot_give_is_refused(tmp_path):
    """A float model with `quantized = True` refuses it before it is saved and after."""
    model = tiny_model(TASK, quantized=True)
    model.save_pretrained(tmp_path)
    for same in (model, type(model).from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match="quantized=True has no gradient, and query requires one"):
            same(tokens(2, 9))
        assert outputs(same).isfinite().all()


def test_loaded_in_a_clean_interpreter(tmp_path):
    """Made and saved here; there run by what the folder holds."""
    folder = write_tiny_checkpoint(tmp_path / "float")
    int8 = quantize(AutoModelForSequenceClassification.from_pretrained(folder))
    int8.save_pretrained(tmp_path / "int8")
    for file in folder.glob("tokenizer*"):
        (tmp_path / "int8" / file.name).write_bytes(file.read_bytes())
    name = "AutoModelForSequenceClassification"
    target = tmp_path / "outputs.safetensors"
    calls = {
        "outputs": ["outputs", {"sources": {name: str(tmp_path / "int8")}, "target": str(target)}],
        "config": ["config_fields", {"source": str(tmp_path / "int8"), "fields": ["quantized", "int8_weights"]}],
    }
    session = run_clean_session(tmp_path / "session", calls, {"HF_HUB_OFFLINE": "1"})
    assert session["config"] == {"class": "InhibiDistilBertConfig", "quantized": True, "int8_weights": True}
    assert session["outputs"] is None
    assert session["package modules"] == []
    got = load_file(target)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert torch.equal(got[f"{name}/inhibitor"], model_outputs(int8, tokenizer))


def test_a_checkpoint_without_int8_weights_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"int8_weights=True, but .*q_lin in .* has no int8 weights; load it with"):
        AutoModel.from_pretrained(tmp_path, int8_weights=True)


def test_what_cannot_be_quantized():
    with pytest.raises(UserError, match="model must be an InhibiDistilBERT model, got DistilBertModel"):
        quantize(tiny_distilbert())
    with pytest.raises(UserError, match="int8 weights already"):
        quantize(quantize(tiny_model()))
    with pytest.raises(UserError, match=r"model has no int8 form: that takes one radius, and it has radii=2\."):
        quantize(tiny_model(radii=2))


def test_without_a_compiler(monkeypatch):
    """In plain torch the same whole numbers."""
    int8 = quantize(tiny_model(TASK))
    compiled = outputs(int8)
    for module in (int8_attention, int8_linear):
        monkeypatch.setattr(module, "_problem", lambda *_: "there is none")
    assert torch.equal(outputs(int8), compiled)


def test_under_torch_compile():
    int8 = quantize(tiny_model(TASK))
    compiled = torch.compile(int8, fullgraph=True, backend="aot_eager")
    assert relative_rms(outputs(compiled), outputs(int8)) < 0.01


def test_exported():
    """A graph of plain operations, for any batch and length."""
    int8 = quantize(tiny_model())
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(int8, (tokens(2, 9),), dynamic_shapes={"input_ids": sizes}).module()
    with torch.no_grad():
        for shape in ((3, 13), (4, 5)):
            got, want = (first_output(model(tokens(*shape))) for model in (program, int8))
            assert torch.equal(got, want)


def test_the_shipped_model_says_the_same():
    """Sentences whose labels are clear stay as they are; see the card for the accuracy on held-out texts."""
    classifier = TextClassifier.from_folder(default_checkpoint(), device="cpu")
    sentences = ["A charming little comedy with a big heart.", "The plot makes no sense.", "I loved it.", "A dull film."]
    want = classifier.predict(sentences)
    classifier.model = quantize(classifier.model)
    for got, exact in zip(classifier.predict(sentences), want, strict=True):
        assert got.label == exact.label
        assert abs(got.score - exact.score) < 0.05
