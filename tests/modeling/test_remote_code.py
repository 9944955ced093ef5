"""A checkpoint folder loads anywhere: with torch and transformers alone, offline or from a Hub, and after any re-save."""

import ast
import importlib.util
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import DistilBertTokenizer, PreTrainedModel
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

import inhibidistilbert
from inhibidistilbert import InhibiDistilBertConfig, InhibiDistilBertModel
from inhibidistilbert.modeling.sources import source_files
from tests.helpers import hosts
from tests.helpers.clean_session import Session, run_clean_session
from tests.helpers.hub import LoopbackHub
from tests.helpers.remote_client import IMPLEMENTATIONS, PIPELINES, model_outputs, run_pipeline

ROOT = Path(inhibidistilbert.__file__).parent
# By their names in a checkpoint.
SOURCES = source_files()
SOURCE_NAMES = sorted(SOURCES)
NEEDED_FILES = [*SOURCE_NAMES, "config.json", "model.safetensors"]
# One of each kind: the first file that is asked for, one deep in the imports, the configuration and the weights.
MISSING_ON_THE_HUB = ["modeling_inhibidistilbert.py", "inhibitor_masks.py", "config.json", "model.safetensors"]

CLASS_NAMES = {
    "AutoModel": "InhibiDistilBertModel",
    "AutoModelForMaskedLM": "InhibiDistilBertForMaskedLM",
    "AutoModelForSequenceClassification": "InhibiDistilBertForSequenceClassification",
    "AutoModelForTokenClassification": "InhibiDistilBertForTokenClassification",
    "AutoModelForQuestionAnswering": "InhibiDistilBertForQuestionAnswering",
    "AutoModelForMultipleChoice": "InhibiDistilBertForMultipleChoice",
}
AUTO_CLASSES = list(CLASS_NAMES)
FULL_AUTO_MAP = {
    "AutoConfig": "configuration_inhibidistilbert.InhibiDistilBertConfig",
    **{auto_class: f"modeling_inhibidistilbert.{name}" for auto_class, name in CLASS_NAMES.items()},
}
CLASSIFIER = "AutoModelForSequenceClassification"
# `make test` loads all from folders, and these alone from a Hub and from what was saved again: a base, a head and a gate.
FEW = ["AutoModel", CLASSIFIER, "AutoModelForMultipleChoice"]
LABELS = {
    CLASSIFIER: ["NEGATIVE", "POSITIVE"],
    "AutoModelForTokenClassification": ["O", "B-PER", "I-PER"],
}
# Unlike the defaults, so that a field or scalar lost on the way shows.
INHIBITOR_FIELDS = {
    "alpha_init": 0.3,
    "beta_init": 0.9,
    "gamma_init": 0.7,
    "scalars_per_head": True,
    "length_normalization": "sqrt",
}
# What one of the models has instead.
GATE = {"inhibition": "gate", "center": "least", "length_normalization": "passed", "radii": 2, "alpha_init": [-0.5, 0.1]}
WORDS = ["the", "a", "film", "was", "quiet", "joy", "dull", "slow", "story", "and", "people", "##s"]


@dataclass
class Checkpoints:
    """One saved model for every Auto class, as the package loads it, and the tokenizer saved with all of them."""

    models: dict[str, PreTrainedModel]
    tokenizer: DistilBertTokenizer
    folders: dict[str, str]


def tiny_tokenizer() -> DistilBertTokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return DistilBertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=64)


def tiny_model(auto_class: str) -> PreTrainedModel:
    """Random weights, every scalar of every head different."""
    labels = LABELS.get(auto_class, ["LABEL_0", "LABEL_1"])
    config = InhibiDistilBertConfig(
        vocab_size=5 + len(WORDS),
        max_position_embeddings=64,
        dim=32,
        hidden_dim=64,
        n_heads=4,
        n_layers=2,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        **INHIBITOR_FIELDS | (GATE if auto_class == "AutoModelForMultipleChoice" else {}),
    )
    model = getattr(inhibidistilbert, CLASS_NAMES[auto_class])(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".alpha", ".beta", ".gamma", ".delta")):
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
            elif parameter.ndim == 2:
                # Large enough that answers differ from sentence to sentence.
                parameter.mul_(10)
    return model.eval()


def assert_same_weights(model: PreTrainedModel, other: PreTrainedModel) -> None:
    weights, others = model.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Checkpoints:
    """Checkpoints as users make them: `model.save_pretrained` and `tokenizer.save_pretrained`, nothing else.

    The models are loaded from there: sums round differently where weights lie differently in memory, as those from a
    mapped file do.
    """
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("checkpoints")
    tokenizer, models, folders = tiny_tokenizer(), {}, {}
    for auto_class in AUTO_CLASSES:
        folder, model = root / f"{auto_class}-tiny-v1.0", tiny_model(auto_class)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        models[auto_class], folders[auto_class] = type(model).from_pretrained(folder), str(folder)
        assert_same_weights(models[auto_class], model)
    return Checkpoints(models, tokenizer, folders)


@pytest.fixture(scope="module")
def expected(checkpoints) -> dict[str, torch.Tensor]:
    """Outputs of the package's own models: `{"<Auto class>/<implementation>": tensor}`."""
    tensors = {}
    for auto_class, model in checkpoints.models.items():
        for name in IMPLEMENTATIONS:
            model.set_attn_implementation(name)
            tensors[f"{auto_class}/{name}"] = model_outputs(model, checkpoints.tokenizer)
        model.set_attn_implementation("inhibitor")
    return tensors


def copy_marked(folder: str, target: Path, marker: Path) -> str:
    """A copy of a checkpoint whose every source file creates `marker` when it runs."""
    shutil.copytree(folder, target)
    for source in target.glob("*.py"):
        source.write_text(source.read_text() + f"\nimport pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    return str(target)


ANOTHER_OPERATOR = "\n\ndef attend_packed(query, *args):\n    return query\n"
WITHOUT_PADDING = """

def inhibitor_mask(attention_mask=None, **kwargs):
    return None

for _name in ATTENTION_FORWARDS:
    AttentionMaskInterface.register(_name, inhibitor_mask)

_within_texts = packed_attention_forward

def packed_attention_forward(module, query, key, value, runs, dropout=0.0):
    return _within_texts(module, query, key, value, [type(runs[0])(0, 1, len(query))], dropout)
"""
# What one file of a checkpoint may have more than that of another: the code in it differs, all else is the same.
CHANGES = {
    "own": ("inhibitor_attention.py", ""),
    "another operator": ("inhibitor_packed.py", ANOTHER_OPERATOR),
    "another mask": ("attention_interface.py", WITHOUT_PADDING),
}


def copy_with(change: str, folder: str, target: Path) -> str:
    """A copy of a checkpoint whose code differs by one of `CHANGES`."""
    shutil.copytree(folder, target)
    name, addition = CHANGES[change]
    source = target / name
    source.write_text(source.read_text() + addition)
    return str(target)


def written_before(folder: str, target: Path) -> str:
    """The same checkpoint with the former text of its configuration file, which did not name the other files."""
    shutil.copytree(folder, target)
    source = target / "configuration_inhibidistilbert.py"
    source.write_text(source.read_text().replace("    from .modeling_inhibidistilbert import", "    pass  #"))
    return str(target)


def folders_of_one_name(folder: str, target: Path) -> dict[str, list[str]]:
    """Checkpoints of one name and of different code, by the orders in which a process may load them."""
    orders = {}
    for number, order in enumerate((list(CHANGES), list(CHANGES)[::-1])):
        name = f"checkpoint-{500 + number}"
        orders[", ".join(order)] = [copy_with(change, folder, target / change / name) for change in order]
    first = written_before(copy_with("another operator", folder, target / "new"), target / "before" / "checkpoint")
    orders["another operator, own"] = [first, copy_with("own", folder, target / "after" / "checkpoint")]
    return orders


def copies_without_one_file(folder: str, target: Path, files: list[str]) -> dict[str, str]:
    """For every one of `files`, a copy of the checkpoint that lacks it."""
    copies = {}
    for name in files:
        copies[name] = str(target / name.replace(".", "_"))
        shutil.copytree(folder, copies[name], ignore=lambda _, names, missing=name: {missing} & set(names))
    return copies


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("work")


def slow_but(few: bool) -> tuple:
    return () if few else (pytest.mark.slow,)


@pytest.fixture(scope="module")
def again(request) -> list[str]:
    """The Auto classes of what is loaded from a Hub and saved again: all where slow tests run."""
    tests = [item for item in request.session.items if item.path == request.path]
    return AUTO_CLASSES if any(test.get_closest_marker("slow") for test in tests) else FEW


@pytest.fixture(scope="module")
def stranger(checkpoints, work, again) -> Session:
    """Someone without this package loads the saved folders, offline, and saves what they loaded."""
    folders, classifier = checkpoints.folders, checkpoints.folders[CLASSIFIER]
    few = {auto_class: folders[auto_class] for auto_class in again}
    untrusted = copy_marked(classifier, work / "untrusted", work / "code_ran_without_trust")
    trusted = copy_marked(classifier, work / "trusted", work / "code_ran_with_trust")
    other = copy_with("another operator", classifier, work / "other_operator")
    alone = [copy_with(change, classifier, work / "alone" / change.replace(" ", "_")) for change in CHANGES]
    one_name = folders_of_one_name(classifier, work / "one_name")
    same = copy_with("own", classifier, work / "rewritten")
    incomplete = copies_without_one_file(classifier, work / "incomplete", NEEDED_FILES)
    # The folder's own Triton kernels, in Triton's interpreter.
    trained = {"implementations": ["inhibitor_triton", "eager"], "target": str(work / "triton.safetensors")}
    calls = {
        "refusals": ["refusals", {"source": untrusted, "auto_classes": ["AutoConfig", *AUTO_CLASSES]}],
        "trusted": ["run_marked", {"source": trusted, "auto_class": CLASSIFIER}],
        "config": ["config_fields", {"source": classifier, "fields": [*INHIBITOR_FIELDS, "dim", "n_layers"]}],
        "outputs": ["outputs", {"sources": folders, "target": str(work / "stranger.safetensors")}],
        "pipelines": ["pipelines", {"sources": folders}],
        "train by Triton": ["losses_and_gradients", {"source": classifier, "auto_class": CLASSIFIER, **trained}],
        "head as base": ["outputs", {"sources": {"AutoModel": classifier}, "target": str(work / "base.safetensors")}],
        "save again": ["save_again", {"sources": few, "target": str(work / "saved-again.v2")}],
        "save base": ["save_again", {"sources": {"AutoModel": classifier}, "target": str(work / "base")}],
        "save new": ["save_new_from_config", {"source": classifier, "target": str(work / "new")}],
        "two versions": ["two_versions", {"ours": classifier, "other": other, "auto_class": CLASSIFIER}],
        "alone": ["in_turn", {"sources": alone, "auto_class": CLASSIFIER}],
        **{order: ["in_turn", {"sources": names, "auto_class": CLASSIFIER}] for order, names in one_name.items()},
        "rewritten": ["rewritten", {"source": same, "other": other, "auto_class": CLASSIFIER}],
        "incomplete": ["load_errors", {"sources": incomplete, "auto_class": CLASSIFIER}],
    }
    return run_clean_session(work / "stranger", calls, {"HF_HUB_OFFLINE": "1", "TRITON_INTERPRET": "1"})


TRITON = ["inhibitor_triton"]
REPOS = {auto_class: f"someone/tiny-{auto_class}" for auto_class in AUTO_CLASSES}


@pytest.fixture(scope="module")
def downloader(checkpoints, work, again) -> Session:
    """Someone without this package loads the same checkpoints by name from a Hub, and saves what they loaded."""
    few = {auto_class: REPOS[auto_class] for auto_class in again}
    repos = {REPOS[auto_class]: {"main": Path(folder)} for auto_class, folder in checkpoints.folders.items()}
    repos["someone/versions"] = {
        "main": Path(checkpoints.folders["AutoModelForMaskedLM"]),
        "v1": Path(checkpoints.folders[CLASSIFIER]),
    }
    incomplete = copies_without_one_file(checkpoints.folders[CLASSIFIER], work / "incomplete_repos", MISSING_ON_THE_HUB)
    repos |= {f"incomplete/{Path(folder).name}": {"main": Path(folder)} for folder in incomplete.values()}
    names = {missing: f"incomplete/{Path(folder).name}" for missing, folder in incomplete.items()}
    version = {"sources": {CLASSIFIER: "someone/versions"}, "revision": "v1", "target": str(work / "v1.safetensors")}
    calls = {
        "outputs": ["outputs", {"sources": few, "target": str(work / "downloader.safetensors")}],
        "pipelines": ["pipelines", {"sources": few}],
        "revision": ["outputs", version],
        "save again": ["save_again", {"sources": few, "target": str(work / "downloaded")}],
        "save new": ["save_new_from_config", {"source": REPOS["AutoModel"], "target": str(work / "new_downloaded")}],
        "incomplete": ["load_errors", {"sources": names, "auto_class": CLASSIFIER}],
        "unknown": ["load_errors", {"sources": {"nobody/nothing": "nobody/nothing"}, "auto_class": "AutoModel"}],
        "triton": ["forward_errors", {"source": REPOS[CLASSIFIER], "auto_class": CLASSIFIER, "implementations": TRITON}],
    }
    with LoopbackHub(repos) as hub:
        session = run_clean_session(work / "downloader", calls, hub.environment() | {"TRITON_INTERPRET": "0"})
    (work / "requests.txt").write_text("\n".join(hub.requests))
    return session


def students_of_hosts(work: Path) -> dict[str, object]:
    """Students in transformers' own classes, and what each is given."""
    sources, given = {}, {}
    for name, auto_class in hosts.AUTO_CLASSES.items():
        sources[name] = [auto_class, str(work / "hosts" / name)]
        hosts.student(name).save_pretrained(sources[name][1])
        given |= {f"{name}/{argument}": tensor for argument, tensor in hosts.inputs_of(name).items()}
    save_file(given, work / "given.safetensors")
    files = {"inputs": str(work / "given.safetensors"), "target": str(work / "students.safetensors")}
    return {"sources": sources, "again": str(work / "hosts-again"), **files}


SAVED_AGAIN = {"from a folder": "saved-again.v2", "from the Hub": "downloaded"}
NEW_MODELS = {"from a folder": "new", "from the Hub": "new_downloaded"}


@pytest.fixture(scope="module")
def second_stranger(stranger, downloader, checkpoints, work, again) -> Session:
    """A third person, offline and with empty caches, loads what the first two saved. As on macOS and Windows no Triton."""
    folder, classifier = checkpoints.folders[CLASSIFIER], {"auto_class": CLASSIFIER}
    # Before any code is trusted.
    calls = {"students": ["students", students_of_hosts(work)], "triton hidden": ["hide", {"package": "triton"}]}
    for label, name in SAVED_AGAIN.items():
        sources = {auto_class: str(work / name / auto_class) for auto_class in again}
        calls[label] = ["outputs", {"sources": sources, "target": str(work / f"{name}.safetensors")}]
    for label, name in {**NEW_MODELS, "base": "base/AutoModel"}.items():
        target = str(work / f"{Path(name).parts[0]}_again.safetensors")
        calls[f"new {label}"] = ["outputs", {"sources": {"AutoModel": str(work / name)}, "target": target}]
    calls |= {
        "triton asked for": ["forward_errors", {"source": folder, "implementations": TRITON, **classifier}],
        # From here on without llvmlite too: two folders that were not loaded before, with code of their own.
        "llvmlite hidden": ["hide", {"package": "llvmlite"}],
        "slow": ["in_turn", {"sources": [copy_with("own", folder, work / f"slow_{i}") for i in (0, 1)], **classifier}],
    }
    return run_clean_session(work / "second_stranger", calls, {"HF_HUB_OFFLINE": "1"})


def of(auto_classes: list[str], expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in expected.items() if name.partition("/")[0] in auto_classes}


def assert_same_outputs(file: Path, expected: dict[str, torch.Tensor]) -> None:
    """Bit for bit under the same implementation, within 1e-5 across implementations."""
    actual = load_file(file)
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name]), name
        for other in IMPLEMENTATIONS:
            reference = expected[f"{name.partition('/')[0]}/{other}"]
            torch.testing.assert_close(tensor, reference, rtol=0, atol=1e-5, msg=f"{name} against {other}")


def assert_outputs_of_package(folder: Path, file: Path) -> None:
    """`file` holds what the package's base model, loaded from `folder`, computes."""
    tokenizer, actual = DistilBertTokenizer.from_pretrained(folder), load_file(file)
    assert actual.keys() == {f"AutoModel/{name}" for name in IMPLEMENTATIONS}
    for name in IMPLEMENTATIONS:
        model = InhibiDistilBertModel.from_pretrained(folder, attn_implementation=name)
        assert torch.equal(actual[f"AutoModel/{name}"], model_outputs(model, tokenizer)), name


def assert_same_code(folder: Path, original: Path) -> None:
    """`folder` carries every source file, byte for byte, no other code, and a map of all Auto classes into itself."""
    assert sorted(file.name for file in folder.glob("*.py")) == SOURCE_NAMES
    for name in SOURCE_NAMES:
        assert (folder / name).read_bytes() == (original / name).read_bytes(), name
    assert json.loads((folder / "config.json").read_text())["auto_map"] == FULL_AUTO_MAP


class TestSources:
    """What makes the source files fit for remote code, read off the files themselves."""

    @pytest.mark.parametrize("source", SOURCE_NAMES)
    def test_transformers_finds_every_relative_import(self, source, checkpoints):
        """transformers looks for imports with a regular expression; the syntax tree says which there really are."""
        copy = Path(checkpoints.folders["AutoModel"], source)
        imports = [node for node in ast.walk(ast.parse(copy.read_text())) if isinstance(node, ast.ImportFrom) and node.level]
        assert all(node.level == 1 and node.module and "." not in node.module for node in imports)
        assert set(get_relative_imports(copy)) == {node.module for node in imports}
        assert {f"{node.module}.py" for node in imports} <= set(SOURCE_NAMES)

    @pytest.mark.parametrize("source", SOURCE_NAMES)
    def test_only_torch_and_transformers_are_required(self, source):
        """transformers insists on the packages that a file imports, but for those under `try`."""
        allowed = {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names
        assert set(get_imports(SOURCES[source])) <= allowed

    @pytest.mark.parametrize("name", ["modeling_inhibidistilbert.py", "configuration_inhibidistilbert.py"])
    def test_every_file_is_reached_from_the_model_and_its_configuration(self, name, checkpoints):
        """transformers copies what the modelling file imports, directly or not; a file beyond that is lost on the way.

        Which class a folder's model has it decides by the configuration file and what that one imports.
        """
        source = Path(checkpoints.folders["AutoModel"], name)
        reached = {Path(file).name for file in get_relative_import_files(source)}
        assert sorted(reached | {source.name}) == SOURCE_NAMES

    def test_the_operator_imports_nothing_from_the_models(self):
        kernels = ROOT / "kernels"
        for source in kernels.rglob("*.py"):
            depth = len(source.relative_to(kernels).parts)
            imports = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.ImportFrom)]
            assert all(node.level <= depth for node in imports), source.name


class TestFolder:
    @pytest.mark.parametrize("auto_class", AUTO_CLASSES)
    def test_holds_the_sources_and_the_full_auto_map(self, auto_class, checkpoints):
        folder = Path(checkpoints.folders[auto_class])
        assert sorted(file.name for file in folder.glob("*.py")) == SOURCE_NAMES
        config = json.loads((folder / "config.json").read_text())
        assert config["auto_map"] == FULL_AUTO_MAP
        assert config["architectures"] == [CLASS_NAMES[auto_class]]

    def test_holds_nothing_else(self, checkpoints):
        others = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
        assert {file.name for file in Path(checkpoints.folders["AutoModel"]).iterdir()} == {*SOURCE_NAMES, *others}

    @pytest.mark.parametrize("source", SOURCE_NAMES)
    def test_sources_differ_in_the_modules_of_relative_imports_only(self, source, checkpoints):
        lines = SOURCES[source].read_text().splitlines()
        copied = Path(checkpoints.folders["AutoModel"], source).read_text().splitlines()
        assert len(copied) == len(lines)
        for line, copy in zip(lines, copied, strict=True):
            before, after = (re.fullmatch(r"( *from )(\.[.\w]+)( import .*)", text) for text in (line, copy))
            if before is None or after is None:
                assert copy == line
            else:
                assert (copy == line) or before.group(1, 3) == after.group(1, 3)
                module = before[2].lstrip(".").removeprefix("kernels.").replace(".", "_")
                assert after[2].removeprefix(".").endswith(module)

    def test_every_folder_of_the_operator_is_in_its_files_names(self):
        assert SOURCES["inhibitor_cpu_code_forward.py"] == ROOT / "kernels" / "cpu" / "code" / "forward.py"
        assert SOURCES["inhibitor_masks.py"] == ROOT / "kernels" / "masks.py"
        assert SOURCES["int8_linear.py"] == ROOT / "modeling" / "int8_linear.py"

    def test_auto_map_that_points_elsewhere_is_replaced(self, checkpoints, tmp_path):
        """As it does in models that some releases of transformers loaded from a Hub."""
        model = InhibiDistilBertModel.from_pretrained(checkpoints.folders["AutoModel"])
        model.config.auto_map = {"AutoModel": "someone/else--modeling_inhibidistilbert.InhibiDistilBertModel"}
        model.save_pretrained(tmp_path)
        assert_same_code(tmp_path, Path(checkpoints.folders["AutoModel"]))

    def test_class_registered_by_hand(self, checkpoints, monkeypatch, tmp_path):
        """As transformers' guide for custom models advises; transformers then copies sources in its own way, too."""
        monkeypatch.setattr(InhibiDistilBertModel, "_auto_class", None)
        InhibiDistilBertModel.register_for_auto_class("AutoModel")
        checkpoints.models["AutoModel"].save_pretrained(tmp_path)
        assert_same_code(tmp_path, Path(checkpoints.folders["AutoModel"]))


class TestWithoutThePackage:
    def test_package_was_out_of_reach(self, stranger, downloader, second_stranger):
        for session in (stranger, downloader, second_stranger):
            assert session["package modules"] == []

    def test_config(self, stranger):
        expected = {"class": "InhibiDistilBertConfig", **INHIBITOR_FIELDS, "dim": 32, "n_layers": 2}
        assert stranger["config"] == expected

    def test_outputs_from_a_folder(self, stranger, work, expected):
        assert stranger["outputs"] is None
        assert_same_outputs(work / "stranger.safetensors", expected)

    def test_outputs_from_the_hub(self, downloader, work, expected, again):
        assert downloader["outputs"] is None
        assert_same_outputs(work / "downloader.safetensors", of(again, expected))
        requests = (work / "requests.txt").read_text().splitlines()
        for name in [*SOURCE_NAMES, "model.safetensors"]:
            assert any(
                line.startswith(f"GET /{REPOS[CLASSIFIER]}/resolve/") and line.endswith(f"/{name}") for line in requests
            )

    def test_outputs_from_a_revision_of_the_hub(self, downloader, work, expected):
        assert downloader["revision"] is None
        assert_same_outputs(work / "v1.safetensors", of([CLASSIFIER], expected))

    @pytest.mark.parametrize("task", PIPELINES)
    def test_pipeline(self, task, stranger, checkpoints):
        own = run_pipeline(task, checkpoints.models[PIPELINES[task]], tokenizer=checkpoints.tokenizer)
        assert stranger["pipelines"][task] == own

    @pytest.mark.parametrize("task", [pytest.param(task, marks=slow_but(PIPELINES[task] in FEW)) for task in PIPELINES])
    def test_pipeline_from_the_hub(self, task, stranger, downloader):
        assert downloader["pipelines"][task] == stranger["pipelines"][task]

    def test_pipelines_know_the_models(self, stranger, downloader):
        for session in (stranger, downloader):
            assert "is not supported for" not in session.stderr

    def test_base_model_from_a_head_folder(self, stranger, work, checkpoints):
        assert stranger["head as base"] is None
        encoder, actual = checkpoints.models[CLASSIFIER].distilbert, load_file(work / "base.safetensors")
        assert torch.equal(actual["AutoModel/inhibitor"], model_outputs(encoder, checkpoints.tokenizer))

    def test_two_versions_of_the_operator_in_one_process(self, stranger):
        assert set(stranger["two versions"].values()) == {True}, stranger["two versions"]

    @pytest.mark.parametrize("order", [*(", ".join(o) for o in (CHANGES, [*CHANGES][::-1])), "another operator, own"])
    def test_folders_of_one_name_run_their_own_code(self, order, stranger):
        """As `runs/a/checkpoint-500` and `runs/b/checkpoint-500` do; the last order starts with a folder of older code."""
        alone = dict(zip(CHANGES, stranger["alone"], strict=True))
        assert len({str(logits) for logits in alone.values()}) == len(CHANGES)
        assert stranger[order] == [alone[change] for change in order.split(", ")]

    def test_a_folder_that_was_written_over_runs_what_it_holds_now(self, stranger):
        alone = dict(zip(CHANGES, stranger["alone"], strict=True))
        assert stranger["rewritten"] == [alone["own"], alone["another operator"]]


class TestTriton:
    @pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="triton is not installed: it exists for Linux alone"
    )
    def test_trains_from_a_folder(self, stranger, work):
        """The loss and every gradient are those of the torch form."""
        assert any(name.endswith(".inhibitor_triton_float32") for name in stranger["train by Triton"])
        actual = load_file(work / "triton.safetensors")
        names = {name.partition("/")[2] for name in actual}
        assert {"loss", "distilbert.transformer.layer.0.attention.alpha"} <= names
        for name in sorted(names):
            got, want = actual[f"inhibitor_triton/{name}"], actual[f"eager/{name}"]
            assert want.any(), name
            assert (got - want).norm() <= 1e-5 * want.norm(), name

    @pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="triton is not installed: it exists for Linux alone"
    )
    def test_tensors_on_the_cpu_are_refused_without_the_interpreter(self, downloader):
        """By name; what is chosen by the device takes them, in the same process."""
        message = downloader["triton"]["inhibitor_triton"]
        reason = "Triton needs tensors on a GPU, query is on cpu"
        assert message == f"ValueError: backend='triton' cannot be used here: {reason}."

    def test_asking_for_triton_without_it_is_one_clear_error(self, second_stranger):
        message = second_stranger["triton asked for"]["inhibitor_triton"]
        reason = "the package triton is not installed; pip install triton"
        assert message == f"ValueError: backend='triton' cannot be used here: {reason}."

    @pytest.mark.skipif(torch.accelerator.is_available(), reason="on a GPU the folder does not need llvmlite")
    def test_folders_run_without_llvmlite_and_say_once_that_they_are_slow(self, second_stranger, work, expected):
        """The message is the process's only one, whichever copy of the code speaks."""
        assert second_stranger["llvmlite hidden"] is True
        for logits in second_stranger["slow"]:
            torch.testing.assert_close(torch.tensor(logits), expected[f"{CLASSIFIER}/inhibitor"], rtol=0, atol=1e-5)
        said = [line for line in second_stranger.stderr.splitlines() if "pip install llvmlite" in line]
        assert len(said) == 1, second_stranger.stderr
        assert "pip install llvmlite. That is 20 to 70 times slower than softmax attention" in said[0]


class TestSavedAgain:
    """From classes that were themselves loaded as remote code."""

    @pytest.mark.parametrize("origin", SAVED_AGAIN)
    @pytest.mark.parametrize("auto_class", [pytest.param(name, marks=slow_but(name in FEW)) for name in AUTO_CLASSES])
    def test_folder(self, auto_class, origin, stranger, downloader, work, checkpoints):
        assert {"from a folder": stranger, "from the Hub": downloader}[origin]["save again"] is None
        assert_same_code(work / SAVED_AGAIN[origin] / auto_class, Path(checkpoints.folders[auto_class]))

    @pytest.mark.parametrize("origin", SAVED_AGAIN)
    def test_outputs_without_triton(self, origin, second_stranger, work, expected, again):
        assert second_stranger["triton hidden"] is True
        assert second_stranger[origin] is None
        assert_same_outputs(work / f"{SAVED_AGAIN[origin]}.safetensors", of(again, expected))

    @pytest.mark.parametrize("origin", NEW_MODELS)
    def test_new_model_from_the_config(self, origin, stranger, downloader, second_stranger, work, checkpoints):
        assert {"from a folder": stranger, "from the Hub": downloader}[origin]["save new"] is None
        assert second_stranger[f"new {origin}"] is None
        folder = work / NEW_MODELS[origin]
        assert_same_code(folder, Path(checkpoints.folders["AutoModel"]))
        assert_outputs_of_package(folder, work / f"{folder.name}_again.safetensors")

    def test_base_model_of_a_head_folder(self, stranger, second_stranger, work, checkpoints):
        assert stranger["save base"] is None
        assert second_stranger["new base"] is None
        folder = work / "base" / "AutoModel"
        assert_same_code(folder, Path(checkpoints.folders["AutoModel"]))
        assert_same_weights(InhibiDistilBertModel.from_pretrained(folder), checkpoints.models[CLASSIFIER].distilbert)
        assert_outputs_of_package(folder, work / "base_again.safetensors")


class TestRefusal:
    @pytest.mark.parametrize("attempt", ["AutoConfig", *AUTO_CLASSES, "pipeline"])
    def test_no_trust_no_model(self, attempt, stranger):
        for label in (attempt, f"{attempt}, trust_remote_code=False"):
            message = stranger["refusals"][label]
            assert message.startswith("ValueError: The repository")
            assert "contains custom code" in message
            assert "`trust_remote_code=True`" in message

    def test_no_trust_no_code_runs(self, stranger, work):
        assert stranger["trusted"] == CLASS_NAMES[CLASSIFIER]
        assert (work / "code_ran_with_trust").exists(), "the marker must work for its absence to prove anything"
        assert not (work / "code_ran_without_trust").exists()

    @pytest.mark.parametrize("missing", NEEDED_FILES)
    def test_incomplete_checkpoint(self, missing, stranger, downloader):
        for session in (stranger, downloader) if missing in MISSING_ON_THE_HUB else (stranger,):
            message = session["incomplete"][missing]
            # transformers takes a folder without configuration for a model of unknown type, but names the file as well.
            assert message.startswith("ValueError: " if missing == "config.json" else ("OSError: ", "FileNotFoundError: "))
            assert missing in message

    def test_unknown_repository(self, downloader):
        message = downloader["unknown"]["nobody/nothing"]
        assert message.startswith("OSError: nobody/nothing is not a local folder and is not a valid model identifier")


class TestWithThePackage:
    """No `trust_remote_code` is needed, and the folder's own code never runs."""

    @pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}], ids=["plain", "trusted"])
    @pytest.mark.parametrize("auto_class", AUTO_CLASSES)
    def test_auto_class(self, auto_class, trust, checkpoints, expected, tmp_path):
        folder = copy_marked(checkpoints.folders[auto_class], tmp_path / "marked", tmp_path / "code_ran")
        model = getattr(transformers, auto_class).from_pretrained(folder, **trust)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **trust)
        assert type(model) is getattr(inhibidistilbert, CLASS_NAMES[auto_class])
        assert type(transformers.AutoConfig.from_pretrained(folder, **trust)) is InhibiDistilBertConfig
        assert torch.equal(model_outputs(model, tokenizer), expected[f"{auto_class}/inhibitor"])
        assert not (tmp_path / "code_ran").exists()

    @pytest.mark.parametrize("task", PIPELINES)
    def test_pipeline(self, task, checkpoints):
        own = run_pipeline(task, checkpoints.models[PIPELINES[task]], tokenizer=checkpoints.tokenizer)
        assert run_pipeline(task, checkpoints.folders[PIPELINES[task]]) == own

    def test_what_a_stranger_saved(self, stranger, work, expected):
        assert stranger["save again"] is None
        folder = work / SAVED_AGAIN["from a folder"] / CLASSIFIER
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert torch.equal(model_outputs(model, tokenizer), expected[f"{CLASSIFIER}/inhibitor"])


class TestStudentsOfHosts:
    @pytest.mark.parametrize("name", hosts.AUTO_CLASSES)
    def test_load_bit_equal_and_save_again(self, name, second_stranger, work):
        assert second_stranger["students"].keys() == hosts.AUTO_CLASSES.keys()
        logits = load_file(work / "students.safetensors")
        # Loaded, as `checkpoints` says.
        model = type(hosts.student(name)).from_pretrained(work / "hosts" / name)
        with torch.no_grad():
            expected = model(**hosts.inputs_of(name)).logits
        assert torch.equal(logits[name], expected)
        assert torch.equal(logits[f"{name} again"], expected)

    def test_are_no_softmax_models_without_trust(self, second_stranger):
        for error in second_stranger["students"].values():
            assert 'Specified `attn_implementation="inhibitor"` is not supported' in error
