"""Loading a stranger's folder: what of it chooses code, another repository or another file is refused or left out."""

import ast
import json
import os
from collections import Counter
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from inhibidistilbert import InhibiDistilBertForSequenceClassification
from inhibidistilbert.benchmarks import peers
from inhibidistilbert.conversion import student_from
from inhibidistilbert.distillation.student import Student, build_student
from inhibidistilbert.distillation.teacher import load_teacher, load_tokenizer
from inhibidistilbert.evaluation.checkpoint import load_checkpoint
from inhibidistilbert.prediction import TextClassifier, default_checkpoint
from inhibidistilbert.publishing.loading import own_outputs
from inhibidistilbert.support import foreign
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.foreign import ForeignFieldError, load_pretrained, plain_config, plain_tokenizer_config
from inhibidistilbert.support.heads import SINGLE_LABEL
from inhibidistilbert.support.models import load_config, load_model
from tests.helpers.code_of_folders import code_of_folders
from tests.helpers.hub import LoopbackHub
from tests.helpers.tiny_sentiment import write_tiny_checkpoint

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def shipped_config() -> dict:
    return json.loads((default_checkpoint() / "config.json").read_text())


@pytest.fixture
def own(tmp_path) -> Path:
    return write_tiny_checkpoint(tmp_path / "own", max_position_embeddings=64)


@pytest.fixture
def bert(own, tmp_path) -> Path:
    """A model of transformers' own, with the tokenizer of the other."""
    folder = tmp_path / "bert"
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    BertForSequenceClassification(BertConfig(vocab_size=19, max_position_embeddings=16, **sizes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(own).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that can be reached, and that has what the folders name: whoever follows them is seen."""
    with LoopbackHub({"someone/other": {"main": write_tiny_checkpoint(tmp_path / "other")}}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        huggingface_hub.utils.close_session()
        yield hub
        huggingface_hub.utils.close_session()


def edit(file: Path, **fields) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | fields))


# A file, its fields, and a word of the refusal.
CHOICES = {
    "kernel of the Hub": ("config.json", {"attn_implementation": "someone/other"}, "attn_implementation"),
    "kernel under the inner name": ("config.json", {"_attn_implementation": "someone/other:f"}, "attn_implementation"),
    "attention that may come from the Hub": ("config.json", {"attn_implementation": "flash_attention_2"}, "flash"),
    "attention by part": ("config.json", {"attn_implementation": {"": "someone/other"}}, "attn_implementation"),
    "experts": ("config.json", {"experts_implementation": "someone/other"}, "experts_implementation"),
    "code elsewhere": ("config.json", {"auto_map": {"AutoConfig": "someone/other--a.B"}}, "someone/other--a.B"),
    "pipelines": ("config.json", {"custom_pipelines": {"x": {"impl": "x.X"}}}, "custom_pipelines"),
    "quantizer": ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
    "other weights": ("config.json", {"transformers_weights": "other.bin"}, "transformers_weights"),
    "other configuration": ("config.json", {"configuration_files": ["config.5.0.0.json"]}, "configuration_files"),
    "kernels": ("config.json", {"use_kernels": True}, "use_kernels"),
    "trust": ("config.json", {"trust_remote_code": True}, "trust_remote_code"),
    "a base elsewhere": ("config.json", {"base_model_name_or_path": "someone/other"}, "base_model_name_or_path"),
    "dtype that is a function": ("config.json", {"dtype": "load"}, "dtype"),
    "a class of the model's": ("config.json", {"tokenizer_class": "AutoModel"}, "tokenizer_class"),
    "an adapter": ("adapter_config.json", {"base_model_name_or_path": "someone/other", "peft_type": "LORA"}, "adapter"),
    "shard elsewhere": ("model.safetensors.index.json", {"weight_map": {"a": "../other/model.safetensors"}}, "../other"),
}
TOKENIZER_CHOICES = {
    "tokenizer elsewhere": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["someone/other--a.B", None]}}, "--a.B"),
    "old form": ("tokenizer_config.json", {"auto_map": [None, "someone/other--a.B"]}, "someone/other--a.B"),
    "tokenizer code": ("tokenizer_config.json", {"tokenizer_class": "Mine", "auto_map": ["a.Mine", None]}, "'Mine'"),
    "no tokenizer": ("tokenizer_config.json", {"tokenizer_class": "AutoModel"}, "'AutoModel'"),
    "another vocabulary": ("tokenizer_config.json", {"gguf_file": "x.gguf"}, "gguf_file"),
    "other files": ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.5.json"]}, "fast_tokenizer_files"),
}
LOADERS = {
    "predict": TextClassifier.from_folder,
    "evaluate": lambda folder: load_checkpoint(str(folder), None, False, SINGLE_LABEL),
    "teacher": lambda folder: load_teacher(str(folder), "ForSequenceClassification", False, "--teacher"),
    "student": lambda folder: build_student(Student(source=str(folder)), "ForSequenceClassification", None, None),
    "benchmark": lambda folder: peers.Checkpoint.load(str(folder)).build("eager"),
    "publish": lambda folder: own_outputs(folder, "InhibiDistilBertForSequenceClassification"),
}
TOKENIZER_LOADERS = {
    **{name: LOADERS[name] for name in ("predict", "evaluate", "publish")},
    "teacher": lambda folder: load_tokenizer(str(folder), False, "--teacher"),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_what_chooses_is_refused_by_every_loader(choice, own, hub):
    file, fields, words = CHOICES[choice]
    edit(own / file, **fields)
    for load in LOADERS.values():
        with pytest.raises((UserError, ForeignFieldError)) as refusal:
            load(own)
        assert file in str(refusal.value)
        assert words in str(refusal.value)
    assert hub.requests == []


@pytest.mark.parametrize("choice", TOKENIZER_CHOICES)
def test_what_chooses_a_tokenizer_is_refused(choice, own, hub):
    file, fields, words = TOKENIZER_CHOICES[choice]
    edit(own / file, **fields)
    for load in TOKENIZER_LOADERS.values():
        with pytest.raises((UserError, ForeignFieldError)) as refusal:
            load(own)
        assert file in str(refusal.value)
        assert words in str(refusal.value)
    assert hub.requests == []


@pytest.mark.parametrize("choice", ["kernel of the Hub", "attention that may come from the Hub", "an adapter", "quantizer"])
def test_models_of_transformers_too(choice, bert, own, hub):
    file, fields, words = CHOICES[choice]
    edit(bert / file, **fields)
    checkpoint = peers.Checkpoint.load(str(own))
    for load in (
        LOADERS["evaluate"],
        LOADERS["teacher"],
        LOADERS["student"],
        student_from,
        lambda folder: peers.build(checkpoint, peers.ModelPeer(str(folder)), "float32", checkpoint.build("eager").device),
    ):
        with pytest.raises(UserError, match=words):
            load(bert)
    assert hub.requests == []


def test_harmless_fields_are_left_out(own, hub):
    """Also code that comes with the folder, by every name that a loader might look for."""
    loaded_before = code_of_folders()
    expected = own_outputs(own, "InhibiDistilBertForSequenceClassification")["eager"]
    witness = own.parent / "ran"
    trap = f"open({str(witness)!r}, 'w')\nclass Trap: pass\n"
    for name in ("trap.py", "json.py", "sitecustomize.py", "__init__.py", "modeling_inhibidistilbert.py", "x.pth"):
        (own / name).write_text(trap)
    (own / "pytorch_model.bin").write_bytes(b"cbuiltins\nexec\n(V" + trap.replace("\n", ";").encode() + b"\ntR.")
    (own / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}")
    edit(own / "config.json", auto_map={"AutoConfig": "trap.Trap", "AutoModel": "trap.Trap"}, x="y", name_or_path="a/b", n=1)
    edit(own / "generation_config.json", custom_generate="someone/other")
    edit(own / "preprocessor_config.json", auto_map={"AutoProcessor": "trap.Trap"})
    edit(own / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "trap.Trap"]}, vocab_file="/x", backend="trap")
    edit(own / "special_tokens_map.json", tokenizer_file="/x", vocab_file="/x", pad_token="[PAD]", auto_map=["trap.Trap"])
    for name, load in LOADERS.items():
        loaded = load(own)
        model = loaded.model if name == "predict" else loaded[0] if isinstance(loaded, tuple) else loaded
        if not isinstance(model, dict):
            assert not {"auto_map", "x", "tokenizer_class"} & model.config.to_dict().keys()
            assert model.name_or_path == model.config.name_or_path == str(own)
    assert own_outputs(own, "InhibiDistilBertForSequenceClassification")["eager"].equal(expected)
    tokenizer = load_pretrained(AutoTokenizer, own)
    assert tokenizer.name_or_path == str(own)
    assert tokenizer.chat_template is None
    assert not witness.exists()
    assert code_of_folders() == loaded_before
    assert hub.requests == []


def test_an_allow_list_of_fields(shipped_config):
    """What is not known to the class stays out, unless it is a number, which names nothing."""
    unknown = {"a": "b", "c": ["d"], "e": {"f": "g"}, "_name_or_path": "/h", "attribute_map": {}, "to_dict": 1, "i": [1]}
    plain = plain_config(shipped_config | unknown)
    assert plain.keys() - shipped_config.keys() == {"i"}
    assert shipped_config.keys() - plain.keys() == {"auto_map"}
    with pytest.raises(ForeignFieldError, match=r"activation is 'someone/other', which names something elsewhere"):
        plain_config(shipped_config | {"activation": "someone/other"})
    for name in ("inhibitor", "inhibitor_cpu", "inhibitor_triton", "eager", None):
        assert plain_config(shipped_config | {"attn_implementation": name})["attn_implementation"] == name
    with pytest.raises(ForeignFieldError, match=r"model_type 'mine'.*--trust-remote-code"):
        plain_config({"model_type": "mine", "auto_map": {"AutoConfig": "a.B"}})


def test_fields_of_transformers_models_are_kept():
    """Old names that its classes translate, and parts of a configuration with the same rules."""
    fields = {"model_type": "mpt", "d_model": 8, "attn_config": {"attn_impl": "torch", "softmax_scale": 2}}
    assert plain_config(fields) == fields
    with pytest.raises(ForeignFieldError, match="use_kernels"):
        plain_config(fields | {"attn_config": {"use_kernels": True}})
    scaling = {"rope_type": "linear", "factor": 2.0}
    rotary = {"model_type": "modernbert", "global_rope_theta": 1000.0, "rope_scaling": scaling}
    assert plain_config(rotary) == rotary
    authors = {"activation_function": "relu", "distance_metric": "manhattan_distance"}
    fields = {"model_type": "distilbert", "hidden_size": 8} | authors
    assert plain_config(fields) == fields


def test_tokenizers_of_transformers_are_kept():
    token = {"content": "</s>", "lstrip": False, "special": True, "__type": "AddedToken"}
    fields = {
        "tokenizer_class": "RobertaTokenizer",
        "eos_token": token,
        "bos_token": "<s>",
        "added_tokens_decoder": {"0": token},
        "add_prefix_space": True,
        "model_max_length": 512,
        "errors": "replace",
    }
    assert plain_tokenizer_config(fields) == fields
    assert plain_tokenizer_config({"tokenizer_class": "NoLongerThere"}) == {"tokenizer_class": "TokenizersBackend"}
    with pytest.raises(ForeignFieldError, match="eos_token must be tokens"):
        plain_tokenizer_config(fields | {"eos_token": {"path": "x"}})


def test_a_hub_id_is_read_as_data_too(own, hub):
    """Only the files of data are fetched; a choice in them is refused."""
    (hub.repos["someone/other"]["main"] / "trap.py").write_text("raise SystemExit")
    model, tokenizer = load_checkpoint("someone/other", None, False, SINGLE_LABEL)
    assert (model.name_or_path, tokenizer.name_or_path) == ("someone/other", "someone/other")
    assert not [request for request in hub.requests if request.endswith(".py")]
    other = load_file(hub.repos["someone/other"]["main"] / WEIGHTS)
    assert model.state_dict()["classifier.weight"].equal(other["classifier.weight"])
    edit(hub.repos["someone/other"]["main"] / "config.json", attn_implementation="someone/kernel")
    hub.requests.clear()
    with pytest.raises(UserError, match="someone/kernel"):
        load_checkpoint("someone/other", None, False, SINGLE_LABEL)
    assert not [request for request in hub.requests if "someone/kernel" in request]


def test_old_weights_are_read_without_running_them(bert):
    """Pickled weights of transformers' models are tensors to it, or nothing."""
    model = BertForSequenceClassification.from_pretrained(bert)
    (bert / WEIGHTS).unlink()
    torch.save(model.state_dict(), bert / "pytorch_model.bin")
    loaded = load_pretrained(AutoModelForSequenceClassification, bert)
    assert loaded.classifier.weight.equal(model.classifier.weight)
    witness = bert / "ran"
    (bert / "pytorch_model.bin").write_bytes(f"cbuiltins\nexec\n(Vopen({str(witness)!r}, 'w')\ntR.".encode())
    with pytest.raises(Exception, match=r"(?i)weights.only|unpickl"):
        load_pretrained(AutoModelForSequenceClassification, bert)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_labels": "2"}, "num_labels must be an integer of at least 1, got '2'"),
        ({"num_labels": []}, r"num_labels must be an integer of at least 1, got \[\]"),
        ({"num_labels": 10**9}, "num_labels must be at most 1000000, got 1000000000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 1000, got 1000000000"),
    ],
    ids=str,
)
def test_counts_that_would_never_end(fields, told, own, bert):
    for folder in (own, bert):
        edit(folder / "config.json", **fields)
        with pytest.raises(UserError, match=f"config.json: {told}"):
            load_config(folder, "SOURCE")


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ({}, "weight_map must give each tensor the name of a file of weights, got None"),
        ({"weight_map": {}}, "weight_map must give"),
        ({"weight_map": ["model-00001-of-00001.safetensors"]}, "weight_map must give"),
        ({"weight_map": {"a": 1}}, "weight_map must give"),
        ({"weight_map": {"a": "/dev/zero"}}, "'/dev/zero' is not the name of a file of weights beside it"),
        ({"weight_map": {"a": "../own/model.safetensors"}}, "is not the name of a file of weights beside it"),
        ({"weight_map": {"a": "model-00001-of-00001.safetensors"}}, "names .*, which is missing"),
        ({"weight_map": {"a": "model-00002-of-00002.safetensors"}}, "must be a regular file, but is a device"),
    ],
    ids=str,
)
def test_an_index_of_another_form(index, told, own):
    (own / WEIGHTS).unlink()
    (own / "model.safetensors.index.json").write_text(json.dumps(index))
    if "device" in told:
        (own / "model-00002-of-00002.safetensors").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=told):
        load_model(InhibiDistilBertForSequenceClassification, own, "SOURCE")


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "vocab.txt", "config.json", WEIGHTS])
def test_pipes_are_not_opened(name, trust, own):
    (own / name).unlink(missing_ok=True)
    os.mkfifo(own / name)
    with pytest.raises(UserError, match=f"{name}' must be a regular file, but is a named pipe"):
        load_model(AutoModelForSequenceClassification, own, "SOURCE", trust_remote_code=trust)


def test_with_trust_everything_is_left_to_transformers(own):
    """The flag's path is unchanged: the registered class, the fields of the folder."""
    edit(own / "config.json", custom="kept")
    model = load_pretrained(AutoModelForSequenceClassification, own, trust_remote_code=True)
    assert isinstance(model, InhibiDistilBertForSequenceClassification)
    assert model.config.custom == "kept"


# Calls of transformers' own loaders, by file: of what this project wrote or pinned itself, or in a process without it.
OWN_FILES = {
    "support/foreign.py": 2,
    "support/sizes.py": 1,
    "publishing/handler.py": 1,
    "publishing/stranger.py": 3,
    "studies/distillation/review_data.py": 2,
}


def test_every_loader_goes_through_one_place():
    found: Counter[str] = Counter()
    package = Path(foreign.__file__).parents[1]
    studies = package.parent / "studies"
    for folder in (package, studies, *(path for path in package.iterdir() if path.is_dir())):
        if folder.name not in ("modeling", "kernels", "checkpoints"):
            for file in folder.glob("**/*.py" if folder != package else "*.py"):
                calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
                names = [call.attr for call in calls if isinstance(call, ast.Attribute)]
                top = package.parent if folder == studies else package
                found[file.relative_to(top).as_posix()] += sum(map(names.count, ("from_pretrained", "get_config_dict")))
    assert +found == OWN_FILES
