"""Students in the classes of transformers' own: what `inhibit` and `convert` make of a model, and what they refuse."""

import json

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, BertTokenizer, FNetConfig, FNetModel, GPT2LMHeadModel

from inhibidistilbert import InhibiDistilBertConfig, InhibiDistilBertModel, cli, inhibit
from inhibidistilbert.conversion import StudentOptions, convert_checkpoint
from inhibidistilbert.modeling.modeling_inhibited import InhibitorNorm, SoftmaxAttention
from inhibidistilbert.support.errors import UserError
from tests.helpers.hosts import HOSTS, inputs_of, student

VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5, "film": 6}


@pytest.fixture
def gpt2(tmp_path):
    """A folder with a model, its tokenizer and a way to generate of its own."""
    model = HOSTS["gpt2"]()
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path / "gpt2")
    BertTokenizer(vocab=VOCABULARY).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def run(monkeypatch, capsys, *words: object) -> dict:
    monkeypatch.setattr("sys.argv", ["inhibidistilbert", "convert", *map(str, words), "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_convert_keeps_class_weights_tokenizer_and_generation(gpt2, tmp_path):
    report = convert_checkpoint(gpt2, tmp_path / "student", StudentOptions(beta_init=0.7, dtype="bfloat16"))
    assert (report.source_class, report.student_class) == ("GPT2LMHeadModel", "GPT2LMHeadModel")
    assert (report.layers, report.source_layers, report.warnings, report.left_out) == ([0, 1], 2, [], [])
    assert sorted(report.new)[:2] == [f"transformer.h.0.attn.inhibitor_norm.{name}" for name in ("alpha", "beta")]
    assert report.parameters_new == 2 * 3 * 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student", trust_remote_code=True)
    host = GPT2LMHeadModel.from_pretrained(gpt2).bfloat16()
    assert all(torch.equal(model.get_parameter(name), x) for name, x in host.named_parameters())
    assert model.transformer.h[1].attn.inhibitor_norm.beta.tolist() == pytest.approx([0.7] * 4)
    assert model.generation_config.max_new_tokens == 3
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "student").get_vocab() == VOCABULARY
    with pytest.raises(UserError, match="is a student already"):
        convert_checkpoint(tmp_path / "student", tmp_path / "again")


def test_convert_command_keeps_bert_and_its_softmax_where_told(tmp_path, monkeypatch, capsys):
    HOSTS["bert"]().save_pretrained(tmp_path / "bert")
    options = ("--keep-class", "--inhibited-layers", "1")
    report = run(monkeypatch, capsys, tmp_path / "bert", tmp_path / "student", *options)
    assert (report["student_class"], report["layers"]) == ("BertForMaskedLM", [1])
    assert "no tokenizer" in report["warnings"][0]
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert (config["model_type"], config["inhibitor"]["layers"]) == ("bert", [1])


def test_convert_keeps_how_images_are_read(tmp_path):
    HOSTS["vit"]().save_pretrained(tmp_path / "vit")
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 12, "width": 12}}
    file = tmp_path / "vit" / "preprocessor_config.json"
    file.write_text(json.dumps(settings | {"auto_map": {"AutoImageProcessor": "evil.Processor"}}))
    report = convert_checkpoint(tmp_path / "vit", tmp_path / "student")
    assert report.warnings == []
    assert json.loads((tmp_path / "student" / "preprocessor_config.json").read_text()) == settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [0]}, "--layers does not fit SOURCE .*: its class is kept"),
        ({"head": False}, "--no-head does not fit SOURCE"),
        ({"inhibited_layers": [0, 2]}, r"--inhibited-layers must be .*, 0 to 1, got \[0, 2\]"),
        ({"radii": 0}, "--radii must be an integer of at least 1"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_options_that_do_not_fit(gpt2, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        convert_checkpoint(gpt2, tmp_path / "student", StudentOptions(**options))
    assert not (tmp_path / "student").exists()


def test_a_bert_that_becomes_a_distilbert_has_no_layers_with_softmax(tmp_path):
    HOSTS["bert"]().save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="--inhibited-layers needs --keep-class"):
        convert_checkpoint(tmp_path / "bert", tmp_path / "student", StudentOptions(inhibited_layers=[0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "generation_config.json"), ('{"custom_generate": "someone/code"}', "generation_config.json.*custom_generate")],
    ids=["no JSON", "code"],
)
def test_a_way_to_generate_that_is_not_data(gpt2, text, message):
    (gpt2 / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        inhibit(gpt2)


def test_inhibit_takes_a_folder(gpt2):
    torch.manual_seed(0)
    model = inhibit(gpt2, layers=[1], inhibition="gate", center="least")
    assert [type(block.attn.inhibitor_norm) for block in model.transformer.h] == [SoftmaxAttention, InhibitorNorm]
    assert model.config.inhibitor["alpha_init"] == -0.5
    assert model(**inputs_of("gpt2")).logits.isfinite().all()


def test_inhibit_refuses():
    model = student("gpt2")
    with pytest.raises(UserError, match="is a student already"):
        inhibit(model)
    with pytest.raises(UserError, match=r"layers must be .*self-attentions, 0 to 1, got \[2\]"):
        inhibit(HOSTS["gpt2"](), layers=[2])
    with pytest.raises(UserError, match="--inhibition must be one of"):
        inhibit(HOSTS["gpt2"](), inhibition="gates")
    with pytest.raises(TypeError, match="has no argument 'colour'"):
        inhibit(HOSTS["gpt2"](), colour="red")
    with pytest.raises(UserError, match="one of transformers' own classes, got InhibiDistilBertModel"):
        inhibit(InhibiDistilBertModel(InhibiDistilBertConfig(vocab_size=8, dim=4, hidden_dim=4, n_layers=1, n_heads=1)))
    with pytest.raises(UserError, match="a folder or a Hub id, got int"):
        inhibit(3)
    with pytest.raises(UserError, match="FNetModel has none"):
        inhibit(FNetModel(FNetConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, intermediate_size=4)))
