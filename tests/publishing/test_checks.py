"""Each check passes a good folder and, of a spoilt one, names the file and the remedy."""

import hashlib
import json

import pytest
import torch

from inhibidistilbert.modeling.sources import source_files
from inhibidistilbert.prediction import default_checkpoint
from inhibidistilbert.publishing import known_sources
from inhibidistilbert.publishing.checks import FILE_CHECKS, broken_table_lines, run_checks
from inhibidistilbert.publishing.model import ModelPublication
from inhibidistilbert.support.errors import UserError
from tests.helpers.publishable import TOKEN, assembled, edit_json, edit_weights, replace_in
from tests.helpers.slow import slow_but_first

ALPHA = "distilbert.transformer.layer.1.attention.alpha"


def set_config(**fields):
    return lambda folder: edit_json(folder / "config.json", lambda config: config.update(fields))


def set_tokenizer(**fields):
    return lambda folder: edit_json(folder / "tokenizer_config.json", lambda config: config.update(fields))


def set_results(**fields):
    return lambda folder: edit_json(folder / "distillation.json", lambda log: log.update(fields))


def set_weights(edit, **metadata):
    return lambda folder: edit_weights(folder, edit, **metadata)


def set_card(old, new):
    return lambda folder: replace_in(folder / "README.md", old, new)


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def header(text):
    """Weights that are nothing but this header."""
    return write("model.safetensors", chr(len(text)) + 7 * "\0" + text)


# What is done to the maintainer's folder: check, file, words of the problem or its remedy.
SPOILT = {
    "pickle in place of safetensors": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        ("files", "model.safetensors", "pytorch_model.bin would run code"),
    ),
    "a damaged index": (
        write("model.safetensors.index.json", "{"),
        ("files", "model.safetensors.index.json", "cannot be read as JSON"),
    ),
    "a shard missing": (
        write("model.safetensors.index.json", '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
        ("files", "model-00001-of-00002.safetensors", "save_pretrained"),
    ),
    "NaN": (
        set_weights(lambda weights: weights["classifier.weight"].fill_(float("nan"))),
        ("weights", "model.safetensors", "classifier.weight is not finite"),
    ),
    "infinite scalar": (
        set_weights(lambda weights: weights[ALPHA].fill_(float("inf"))),
        ("weights", "model.safetensors", "alpha is not finite"),
    ),
    "delta missing": (
        set_config(length_normalization="passed"),
        ("weights", "model.safetensors", "layer.0.attention.delta"),
    ),
    "scalar missing": (set_weights(lambda weights: weights.pop(ALPHA)), ("weights", "model.safetensors", "layer.1")),
    "weights cut short": (write("model.safetensors", "short"), ("weights", "model.safetensors", "cannot be read")),
    "a header that is no object": (header("[1]"), ("weights", "model.safetensors", "cannot be read")),
    "a shape that holds text": (
        header('{"a": {"dtype": "F32", "shape": [9, "x"], "data_offsets": [0, 0]}}'),
        ("weights", "model.safetensors", "cannot be read"),
    ),
    "auto_map of one class": (
        set_config(auto_map={"AutoConfig": "configuration_inhibidistilbert.InhibiDistilBertConfig"}),
        ("auto_map", "config.json", "AutoModelForMaskedLM"),
    ),
    "auto_map to a stranger": (
        set_config(auto_map={"AutoModel": "modeling_other.Model"}),
        ("remote code", "modeling_other.py", "is missing"),
    ),
    "unknown architecture": (set_config(architectures=["BertModel"]), ("auto_map", "config.json", "'BertModel'")),
    "no tokenizer": (remove("tokenizer.json"), ("tokenizer", "tokenizer.json", "is missing")),
    "another vocabulary": (set_config(vocab_size=12), ("tokenizer", "tokenizer.json", "ids up to 19")),
    "positions": (
        set_tokenizer(model_max_length=10**30),
        ("tokenizer", "tokenizer_config.json", "tokenizer.model_max_length = 48"),
    ),
    "token types": (
        set_tokenizer(model_input_names=["input_ids", "token_type_ids"]),
        ("tokenizer", "tokenizer_config.json", "tokenizer.model_input_names"),
    ),
    "padding": (set_config(pad_token_id=3), ("tokenizer", "tokenizer.json", "pads with 0")),
    "generic labels": (
        set_config(id2label={"0": "LABEL_0", "1": "LABEL_1"}, label2id={"LABEL_0": 0, "LABEL_1": 1}),
        ("labels", "config.json", "LABEL_0, LABEL_1"),
    ),
    "label2id another way": (
        set_config(label2id={"NEGATIVE": 1, "POSITIVE": 0}),
        ("labels", "config.json", "label2id is not the inverse"),
    ),
    "a pipeline of its own": (
        set_config(custom_pipelines={"x": {"impl": "x.X"}}),
        ("choices", "config.json", "custom_pipelines"),
    ),
    "a kernel elsewhere": (set_config(attn_implementation="a/b"), ("choices", "config.json", "attn_implementation")),
    "a tokenizer elsewhere": (
        set_tokenizer(auto_map={"AutoTokenizer": ["a/b--c.D", None]}),
        ("choices", "tokenizer_config.json", "a/b--c.D"),
    ),
    "a tokenizer of its own": (
        set_tokenizer(auto_map=["modeling_inhibidistilbert.X", None]),
        ("choices", "tokenizer_config.json", "modeling_inhibidistilbert.X"),
    ),
    "generation elsewhere": (
        write("generation_config.json", '{"custom_generate": "a/b"}'),
        ("choices", "generation_config.json", "custom_generate"),
    ),
    "a list for an object": (set_config(auto_map=["x"]), ("auto_map", "auto_map", "are of another form")),
    "path in the configuration": (
        set_config(_name_or_path="/home/someone/runs/final"),
        ("private paths", "config.json", "/home/someone/runs/final"),
    ),
    "path in the results": (set_results(out="C:\\Users\\x\\runs"), ("private paths", "distillation.json", "relative path")),
    "token in a text file": (set_results(note=f"token {TOKEN}"), ("secrets", "distillation.json", "revoke it")),
    "token in the card": (set_card("Irony", f"Use {TOKEN}. Irony"), ("secrets", "README.md", "a Hugging Face token")),
    "token in the weights": (
        set_weights(lambda weights: None, note=TOKEN),
        ("secrets", "model.safetensors", "a Hugging Face token"),
    ),
    "no licence": (set_card("license: apache-2.0\n", ""), ("card metadata", "README.md", "license: apache-2.0")),
    "no base model": (set_card("base_model: someone/teacher\n", ""), ("card metadata", "README.md", "base_model")),
    "no relation": (set_card("base_model_relation: finetune\n", ""), ("card metadata", "README.md", "relation")),
    "odd relation": (set_card("finetune", "cousin"), ("card metadata", "README.md", "'cousin'")),
    "no data": (set_card("datasets:\n- stanfordnlp/imdb\n", ""), ("card metadata", "README.md", "datasets")),
    "data without an id": (set_card("- stanfordnlp/imdb", "- my own reviews"), ("card metadata", "README.md", "'my own")),
    "unfilled field": (set_card("Irony is", "[More Information Needed]"), ("card", "README.md", "unfilled")),
    "no limits": (set_card("## Limits and bias", "## Praise"), ("card", "README.md", "## Limits and bias")),
    "number from nowhere": (set_card("Irony is", "99.3 % is"), ("card", "README.md", "the number 99.3")),
    "broken table": (
        set_card("## Terms", "## Evaluation notes\n\n| a | b |\n|---|---|\n| c |\n\n## Terms"),
        ("card", "README.md", "broken table line"),
    ),
    "a licence by another name": (set_card("apache-2.0", "MIT"), ("card metadata", "README.md", "give `mit`")),
    "a language by its name": (set_card("language: en", "language: English"), ("card metadata", "README.md", "'English'")),
    "a base model on a disk": (
        set_card("someone/teacher", "runs/teacher"),
        ("card metadata", "README.md", "path on a disk"),
    ),
    "data on a disk": (
        set_card("- stanfordnlp/imdb", "- data/train.csv"),
        ("card metadata", "README.md", "'data/train.csv'"),
    ),
    "a label that is no text": (
        set_config(id2label={"0": ["NEGATIVE"], "1": "POSITIVE"}),
        ("labels", "config.json", "id2label must give a name"),
    ),
}


class TestGoodFolder:
    def test_passes(self, candidate):
        assert [result for result in run_checks(candidate, FILE_CHECKS) if not result.passed] == []

    def test_shipped_checkpoint_passes(self, tmp_path):
        shipped = assembled(default_checkpoint(), tmp_path / "shipped")
        assert [result for result in run_checks(shipped, FILE_CHECKS) if not result.passed] == []

    def test_holds_what_is_allowed_and_nothing_else(self, candidate):
        assert candidate.files.keys() == {
            ".eval_results/stanfordnlp--imdb.yaml",
            "README.md",
            "config.json",
            "distillation.json",
            "eval_results.json",
            "handler.py",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            *source_files(),
        }
        assert set(candidate.left_out) == {"optimizer.pt", "events.log"}


@pytest.mark.parametrize("how", slow_but_first(SPOILT, lambda how: [SPOILT[how][1][:2]]))
def test_spoilt_folder(how, checkpoint, tmp_path):
    spoil, (check, file, words) = SPOILT[how]
    spoil(checkpoint)
    results = run_checks(assembled(checkpoint, tmp_path / "spoilt"), FILE_CHECKS)
    problems = [problem for result in results if result.name == check for problem in result.problems]
    assert any(problem.file == file and words in f"{problem.what}; {problem.remedy}" for problem in problems), results
    assert all(problem.remedy for problem in problems)
    assert TOKEN not in repr(results)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"n_layers": "2"}, "Field 'n_layers' expected int, got str"),
        ({"n_layers": 10**9}, "n_layers must be at most 1000, got 1000000000"),
        ({"architectures": {"a": 1}}, "architectures"),
        ({"num_attention_heads": []}, "n_heads must be an integer, got"),
        ({"vocab_size": None}, "vocab_size"),
    ],
    ids=str,
)
def test_a_configuration_of_wrong_types_is_refused_before_anything_is_made_of_it(fields, told, checkpoint, tmp_path):
    set_config(**fields)(checkpoint)
    with pytest.raises(UserError, match=f"^CHECKPOINT_DIR: config.json: .*{told}"):
        assembled(checkpoint, tmp_path / "spoilt")


@pytest.mark.parametrize("labels", [["A", "B"], "A", 2])
def test_labels_that_are_no_object(labels, checkpoint, tmp_path):
    set_config(id2label=labels)(checkpoint)
    (problem,) = FILE_CHECKS["labels"](assembled(checkpoint, tmp_path / "spoilt"))
    assert problem.what == "id2label must give a name, a text, to each index"


@pytest.mark.parametrize("name", ["inhibitor_masks.py", "modeling_inhibidistilbert.py"])
def test_missing_source_file(name, candidate):
    (candidate.folder / name).unlink()
    for check in ("remote code", "known sources"):
        assert name in {problem.file for problem in FILE_CHECKS[check](candidate)}


class TestKnownSources:
    """By content, and all of one version."""

    @pytest.mark.parametrize(
        "name", ["modeling_inhibidistilbert.py", "configuration_inhibidistilbert.py", "inhibitor_masks.py"]
    )
    def test_a_changed_file_is_named(self, name, candidate):
        (candidate.folder / name).write_text((candidate.folder / name).read_text() + "\n")
        (problem,) = FILE_CHECKS["known sources"](candidate)
        assert (problem.file, problem.what) == (name, "differs from every known release")

    @pytest.mark.parametrize("name", ["__init__.py", "json.py", "sub/inhibitor_masks.py"])
    def test_a_file_more_is_named(self, name, candidate):
        (candidate.folder / name).parent.mkdir(exist_ok=True)
        (candidate.folder / name).write_text("")
        (problem,) = FILE_CHECKS["known sources"](candidate)
        assert (problem.file, problem.what) == (name, "differs from every known release")

    def test_a_release_is_known_whole(self, candidate, tmp_path, monkeypatch):
        """An older release has other content and a file that there is no longer."""
        table = tmp_path / "known.json"
        table.write_text('{"model": {}, "kernel": {}}')
        monkeypatch.setattr(known_sources, "TABLE", table)
        masks, old = candidate.folder / "inhibitor_masks.py", candidate.folder / "inhibitor_old.py"
        now = masks.read_text()
        masks.write_text(now + "# older\n")
        old.write_text("")
        (candidate.folder / "inhibitor_blocked.py").write_text("# older\n")
        digests = {n: hashlib.sha256(f.read_bytes()).hexdigest() for n, f in candidate.files.items() if n.endswith(".py")}
        assert len(list(FILE_CHECKS["known sources"](candidate))) == 3
        table.write_text(json.dumps({"model": {"0.0.1": digests}, "kernel": {}}))
        assert list(FILE_CHECKS["known sources"](candidate)) == []
        assert list(FILE_CHECKS["files"](candidate)) == []
        masks.write_text(now)
        (problem,) = FILE_CHECKS["known sources"](candidate)
        assert (problem.file, problem.what) == (masks.name, "is of another release than the files beside it")

    def test_a_release_is_added_once(self, tmp_path, monkeypatch):
        table = tmp_path / "known.json"
        table.write_text('{"model": {}, "kernel": {}}')
        monkeypatch.setattr(known_sources, "TABLE", table)
        known_sources.main()
        known_sources.main()
        (release,) = known_sources.releases("model").values()
        assert release == known_sources.sources("model")
        (kernel,) = known_sources.releases("kernel").values()
        assert {"build.toml", "build/torch-cpu/metadata.json"} <= kernel.keys()
        table.write_text(table.read_text().replace(release["inhibitor_masks.py"], "0" * 64))
        with pytest.raises(UserError, match="with other sources"):
            known_sources.main()


def test_stray_file(candidate):
    (candidate.folder / "training_args.bin").write_bytes(b"a pickle")
    assert [problem.file for problem in FILE_CHECKS["files"](candidate)] == ["training_args.bin"]


class TestLoading:
    def test_other_outputs_are_seen(self, candidate):
        """The folder on its way to the Hub differs from the maintainer's."""

        def nudge(weights: dict[str, torch.Tensor]) -> None:
            weights["classifier.bias"].add_(1e-2)

        edit_weights(candidate.folder, nudge)
        problems = list(ModelPublication().check_loading(candidate))
        assert len(problems) == 2
        assert all("outputs differ" in problem.what for problem in problems)

    def test_code_that_needs_this_package_is_seen(self, candidate):
        source = candidate.folder / "modeling_inhibidistilbert.py"
        source.write_text("try:\n    import inhibidistilbert.support.errors\nfinally:\n    pass\n" + source.read_text())
        (problem,) = ModelPublication().check_loading(candidate)
        assert problem.what.endswith("No module named 'inhibidistilbert'")


class TestBadInput:
    def test_another_model(self, checkpoint, tmp_path):
        set_config(model_type="bert")(checkpoint)
        with pytest.raises(UserError, match="'inhibidistilbert', got 'bert'"):
            assembled(checkpoint, tmp_path / "assembled")

    def test_no_folder(self, tmp_path):
        with pytest.raises(UserError, match="is not a folder"):
            assembled(tmp_path / "nowhere", tmp_path / "assembled")

    @pytest.mark.parametrize("name", ["eval_results.json", "distillation.json"])
    def test_results_of_another_form(self, name, checkpoint, tmp_path):
        (checkpoint / name).write_text(json.dumps({"results": [{"dataset": "x"}], "tests": {}}))
        with pytest.raises(UserError, match=f"'{name}' is not of its form"):
            assembled(checkpoint, tmp_path / "assembled")

    @pytest.mark.parametrize(
        "value",
        [
            *("NaN", '"0.81"', "88.45", "[]"),
            *(pytest.param(x, marks=pytest.mark.slow) for x in ("Infinity", "-Infinity", "1e999", '"nan"', "true", "-0.1")),
        ],
    )
    @pytest.mark.parametrize("name", ["eval_results.json", "distillation.json"])
    def test_results_that_are_no_results(self, name, value, checkpoint, tmp_path):
        """Neither read as numbers nor shown: accuracies are fractions."""
        for result in ("0.8125", "0.875"):
            (checkpoint / name).write_text((checkpoint / name).read_text().replace(result, value))
        with pytest.raises(UserError, match=f"'{name}' (cannot be read as JSON|is not of its form)"):
            assembled(checkpoint, tmp_path / "assembled")

    @pytest.mark.parametrize(
        "fields",
        [
            {"dataset": "data/reviews.csv"},
            {"dataset": "my reviews"},
            {"examples": 0},
            {"examples": "many"},
            {"std": -1},
            {"std": "0.1"},
            {"split": None},
            {"metric": 5},
            {"revision": 7},
            {"control": {"value": "0.8"}},
        ],
    )
    def test_results_of_other_kinds(self, fields, checkpoint, tmp_path):
        edit_json(checkpoint / "eval_results.json", lambda content: content["results"][0].update(fields))
        with pytest.raises(UserError, match=r"'eval_results\.json' is not of its form"):
            assembled(checkpoint, tmp_path / "assembled")

    def test_a_date_that_is_none(self, checkpoint, tmp_path):
        edit_json(checkpoint / "eval_results.json", lambda content: content.update(date="yesterday"))
        with pytest.raises(UserError, match="date must be text of the form 2026-01-31, got 'yesterday'"):
            assembled(checkpoint, tmp_path / "assembled")


@pytest.mark.parametrize(
    ("table", "broken"),
    [
        ("| a | b |\n|---|---|\n| 1 | 2 |", 0),
        ("| a | b |\n|---|---|\n| 1 |", 1),
        ("| a | b |\n|---|---|\n| 1 | |", 1),
        ("| a |\n\n| b | c |", 0),
        ("| a | b |\n|---|---|\n| 1\\|2 | 3 |", 0),
    ],
)
def test_broken_table_lines(table, broken):
    assert len(list(broken_table_lines(table))) == broken
