"""The card: valid metadata, whole text, and numbers from the files of results alone."""

import ast
import json
import re
from html import escape as escape_html

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.hf_api import parse_eval_result_entries
from markdown_it import MarkdownIt

from inhibidistilbert.publishing.card import _training, section
from inhibidistilbert.publishing.checks import untraced_numbers
from inhibidistilbert.publishing.markup import one_line
from inhibidistilbert.publishing.measurements import read_benchmarks
from inhibidistilbert.publishing.tasks import usage
from inhibidistilbert.support.benchmark_results import (
    CpuResults,
    CpuRow,
    KernelResults,
    KernelRow,
    ModelResults,
    ModelRow,
    Setting,
    Shape,
    Tokens,
)
from inhibidistilbert.support.distillation_log import DistillationLog
from inhibidistilbert.support.errors import UserError
from inhibidistilbert.support.results import Quantiles
from tests.helpers.publishable import assembled, edit_json, replace_in

SECTIONS = (
    "Use",
    "Evaluation",
    "Training",
    "Speed and energy",
    "Limits and bias",
    "Environmental impact",
    "Terms",
    "Cite",
)
MACHINE = {"cpu": "Some Processor", "date": "2026-01-31T08:00:00+00:00"}
SHAPE = Shape(1, 12, 128, 64)


def quantiles(value: float) -> Quantiles:
    return Quantiles(value, value, value)


@pytest.fixture
def card(candidate) -> ModelCard:
    return ModelCard.load(candidate.folder / "README.md")


class TestMetadata:
    def test_fields(self, card):
        data = card.data
        assert (data.license, data.language, data.library_name) == ("apache-2.0", "en", "transformers")
        assert (data.base_model, data.get("base_model_relation")) == ("someone/teacher", "finetune")
        assert data.datasets == ["stanfordnlp/imdb"]
        assert data.pipeline_tag == "text-classification"
        assert data.metrics == ["accuracy"]
        assert {"custom_code", "inhibitor-attention", "sentiment-analysis"} <= set(data.tags)
        assert data.get("widget") == [{"text": "A quiet film."}]

    def test_model_index(self, card):
        results = {result.dataset_type: result for result in card.data.eval_results}
        published = results["stanfordnlp/imdb"]
        assert (published.metric_type, published.metric_value, published.dataset_split) == ("accuracy", 0.8125, "test")
        assert results["reviews"].metric_value == 0.875

    def test_evaluation_entries(self, candidate):
        content = yaml.safe_load(candidate.files[".eval_results/stanfordnlp--imdb.yaml"].read_text())
        (entry,) = parse_eval_result_entries(content)
        assert (entry.dataset_id, entry.task_id, entry.value) == ("stanfordnlp/imdb", "sentiment", 0.8125)
        assert entry.dataset_revision == "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"


class TestText:
    @pytest.mark.parametrize("title", SECTIONS)
    def test_every_section_says_something(self, title, card):
        assert section(card.text, title)

    def test_what_is_not_given_is_said(self, checkpoint, tmp_path):
        replace_in(checkpoint / "README.md", "base_model: someone/teacher\n", "")
        replace_in(checkpoint / "README.md", "datasets:\n- stanfordnlp/imdb\n", "")
        replace_in(checkpoint / "README.md", "The reviews are research data (Maas et al. 2011).\n", "")
        text = ModelCard.load(assembled(checkpoint, tmp_path / "other").folder / "README.md").text
        terms = section(text, "Terms").splitlines()
        assert terms == ["Weights and code: apache-2.0. The base model is not given.", "The data are not given."]
        assert "Data: ." not in text

    def test_table_has_the_control_beside_it(self, card):
        assert "| stanfordnlp/imdb, test | 25,000 | accuracy | 81.2 | 84.4 (a softmax model) |" in card.text
        assert "| reviews | 321 | accuracy | 87.5 | 91.0 (its teacher) |" in card.text

    def test_usage_is_pinned_to_the_tag(self, card):
        assert 'pipeline("text-classification", model="someone/tiny", revision="v1", trust_remote_code=True)' in card.text

    def test_nothing_that_it_says_to_run_waits_for_an_answer(self, card):
        lines = [line for line in card.text.splitlines() if re.search(r"(from_pretrained|pipeline)\(", line)]
        assert len(lines) == 3
        assert all("trust_remote_code=True" in line for line in lines)

    def test_what_it_needs_for_speed_is_named(self, card):
        needs = section(card.text, "Use").partition("It needs")[2]
        for words in ("`pip install llvmlite`", "20 to 70 times slower", "Triton"):
            assert words in needs

    def test_usage_without_a_tag(self, checkpoint, tmp_path):
        text = (assembled(checkpoint, tmp_path / "x", revision=None).folder / "README.md").read_text()
        assert 'pipeline("text-classification", model="someone/tiny", trust_remote_code=True)' in text

    def test_recipe_comes_from_the_log(self, card):
        training = section(card.text, "Training")
        for words in (
            "- fine-tuning of the teacher: 801 steps",
            "- task, teacher `teacher`: epochs 2.0, learning rate 0.0005",
            "Seed 7",
        ):
            assert words in training

    def test_maintainers_words(self, card):
        assert "Irony is misread." in section(card.text, "Limits and bias")
        assert "Maas et al. 2011" in section(card.text, "Terms")
        assert section(card.text, "Diary") == "We had many cups of coffee."
        assert "12345" not in card.text  # the template's own section says how it was trained

    @pytest.mark.parametrize(("signed", "formula"), [(True, "relu(v⁺ − Z) − relu(v⁻ − Z)"), (False, "Σ relu(v − Z)")])
    @pytest.mark.parametrize(("normalization", "factor"), [("none", "H = β · Σ"), ("sqrt", "H = β/√n · Σ")])
    def test_formula_is_this_models(self, signed, formula, normalization, factor, checkpoint, tmp_path):
        fields = {"signed": signed, "length_normalization": normalization}
        edit_json(checkpoint / "config.json", lambda config: config.update(fields))
        text = (assembled(checkpoint, tmp_path / "x").folder / "README.md").read_text()
        assert formula in text
        assert factor in text

    @pytest.mark.parametrize(
        ("fields", "formula"),
        [
            (
                {"inhibition": "gate", "center": "least", "length_normalization": "passed", "radii": 2},
                "S = (γ/√d) · Σ|q − k|, less that of the nearest visible key; Z = S + α; "
                "H = β · Σ [relu(v/2 − Z) − relu(−v/2 − Z)] / (0.001 + Σ min(1, relu(1/2 − δZ)))\n\n"
                "Z and the sums are computed for 2 radii, each with an α and a γ of its own, and added up. Those of the "
                "first count once, those of\nanother times its own β (in the divisor times |β|); the first β scales the "
                "output.\n\n"
                "d the head size, and α, β, γ, δ learned",
            ),
            (
                {"signed": False, "length_normalization": "passed"},
                "centred over the visible keys; Z = relu(S + α); H = β · Σ relu(v − Z) / (0.001 + Σ relu(1 − δZ))\n\n"
                "d the head size, and α, β, γ, δ learned",
            ),
        ],
        ids=["gate", "threshold"],
    )
    def test_formula_beyond_the_paper(self, fields, formula, checkpoint, tmp_path):
        edit_json(checkpoint / "config.json", lambda config: config.update(fields))
        text = (assembled(checkpoint, tmp_path / "x").folder / "README.md").read_text()
        assert formula in text
        assert "divides by how much they let pass" in text

    def test_nothing_measured(self, checkpoint, tmp_path):
        for name in ("eval_results.json", "distillation.json"):
            (checkpoint / name).unlink()
        card = ModelCard.load(assembled(checkpoint, tmp_path / "x").folder / "README.md")
        assert section(card.text, "Evaluation") == "Not measured."
        assert "Speed: not measured" in section(card.text, "Speed and energy")
        assert "No record" in section(card.text, "Training")
        assert card.data.eval_results is None

    def test_a_distillation_by_a_recipe(self, checkpoint, tmp_path):
        settings = {"learning_rate": 0.001, "batch_size": 48, "max_length": 64}
        stages = [{"name": "align", "teacher": None, **settings}, {"name": "task", "teacher": "runs/tuned", **settings}]
        log = {
            "recipe": {
                "teacher": "runs/teacher",
                "student": {"source": "runs/aligned"},
                "stages": stages,
                "seed": 7,
                "bf16": False,
                "save_dtype": "float32",
            },
            "stages": {"align": {"steps": 600}, "task": {"steps": 801}},
            "tests": {"student": {"data/grades.csv": {"pearson": 0.8125, "spearmanr": 0.75, "texts": 321}}},
            "machine": "x86_64, 2 threads",
        }
        (checkpoint / "distillation.json").write_text(json.dumps(log))
        candidate = assembled(checkpoint, tmp_path / "x")
        card = ModelCard.load(candidate.folder / "README.md")
        training = section(card.text, "Training")
        assert "- align, teacher `teacher`: 600 steps" in training
        assert "- task, teacher `tuned`: 801 steps, learning rate 0.001, batches of 48 texts of up to 64 tokens" in training
        assert {"accuracy", "pearson", "spearmanr"} == set(card.data.metrics)
        assert list(untraced_numbers(candidate, card.text)) == []

    def test_a_multi_label_model(self, checkpoint, tmp_path):
        row = {"dataset": "tags", "published": False, "split": "test", "examples": 321}
        values = {"f1_micro": 0.8125, "f1_macro": 0.75, "average_precision": 0.875}
        rows = [{**row, "metric": metric, "value": value} for metric, value in values.items()]
        (checkpoint / "eval_results.json").write_text(json.dumps({"results": rows}))
        edit_json(checkpoint / "config.json", lambda config: config.update(problem_type="multi_label_classification"))
        candidate = assembled(checkpoint, tmp_path / "x")
        card = ModelCard.load(candidate.folder / "README.md")
        assert "a text has any number of them, each with a probability of its own" in card.text
        assert (
            'pipeline("text-classification", model="someone/tiny", revision="v1", trust_remote_code=True, top_k=None)'
            in card.text
        )
        for metric, value in values.items():
            assert f"| tags, test | 321 | {metric} | {100 * value:.1f} | not measured |" in card.text
        assert set(values) <= set(card.data.metrics)
        assert list(untraced_numbers(candidate, card.text)) == []


HOSTILE = [
    '"]); import os #',
    "</table><script>alert(1)</script>",
    "a|b",
    "two\nlines\n\n# A heading",
    "`code` ``and more``",
    "[a link](https://example.org) ![x](y)",
    "**bold** _slanted_ ~~struck~~ $x$",
    "&lt;b&gt; <b>bold</b> \\",
    "{{ config }} {% for x in y %}",
    "---\nlicense: mit\n---",
    "\x1b[31m\x00red\u2028\u202e",
]


def shown(markdown: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)


@pytest.mark.parametrize("text", HOSTILE)
class TestTextOfOthers:
    """Names and values of any form are shown as they are, on one line, and are no markup, code or metadata."""

    def test_everywhere_on_the_card(self, text, checkpoint, tmp_path, candidate):
        def edit(config):
            config.update(id2label={"0": text, "1": "x"}, label2id={text: 0, "x": 1})

        edit_json(checkpoint / "config.json", edit)
        row = {"split": text, "control": {"model": text, "value": 0.5}}
        edit_json(checkpoint / "eval_results.json", lambda content: content["results"][0].update(row))
        edit_json(
            checkpoint / "distillation.json", lambda log: (log.update(machine=text), log["recipe"].update(teacher=text))
        )
        folder = assembled(checkpoint, tmp_path / "x").folder
        card, plain = ModelCard.load(folder / "README.md"), ModelCard.load(candidate.folder / "README.md")
        html = shown(card.text)
        visible = escape_html(one_line(text)).replace("&#x27;", "'")
        assert html.count(visible) >= 4, html
        # No other element than without it, hence no link, table cell, heading or script.
        assert re.findall(r"</?[a-z]\w*", html) == re.findall(r"</?[a-z]\w*", shown(plain.text))
        assert card.data.to_dict().keys() == plain.data.to_dict().keys()
        assert card.data.eval_results[0].dataset_split == text

    def test_names_of_stages(self, text):
        log = {
            "recipe": {
                "teacher": text,
                "student": {"source": text},
                "stages": [{"name": text, "teacher": None, "learning_rate": 1, "batch_size": 1, "max_length": 1}],
                "seed": 7,
                "bf16": False,
                "save_dtype": text,
            },
            "stages": {text: {"steps": 6}},
        }
        (stage,) = _training(DistillationLog.from_json(log))["stages"]
        html = shown(f"- {stage}\n")
        assert re.findall(r"</?[a-z]\w*", html) == ["<ul", "<li", "<code", "</code", "</li", "</ul"]

    def test_in_examples_of_code(self, text):
        for line in (*usage("InhibiDistilBertModel", text, text), *usage("InhibiDistilBertForMultipleChoice", text, text)):
            tree = ast.parse(line)
            assert len(tree.body) == 1
        (value,) = [keyword.value for keyword in tree.body[0].value.keywords if keyword.arg == "revision"]
        assert value.value == text
        assert usage(text, "a/b", None)[0] == "from transformers import AutoModel"


def test_metadata_keeps_its_form(checkpoint, tmp_path):
    """Text in the metadata that looks like its end; tags in one word are one tag."""
    replace_in(checkpoint / "README.md", "A quiet film.", '"a\\n---\\nlicense: mit"')
    replace_in(checkpoint / "README.md", "tags:\n- sentiment-analysis", "tags: sentiment-analysis")
    card = ModelCard.load(assembled(checkpoint, tmp_path / "x").folder / "README.md")
    assert (card.data.license, card.data.get("widget")) == ("apache-2.0", [{"text": "a\n---\nlicense: mit"}])
    assert card.data.tags == ["custom_code", "inhibitor-attention", "distillation", "sentiment-analysis"]


def test_metadata_that_gives_a_thing_twice(checkpoint, tmp_path):
    replace_in(checkpoint / "README.md", "license: apache-2.0", "license: apache-2.0\nlicense: mit")
    with pytest.raises(UserError, match="gives 'license' twice"):
        assembled(checkpoint, tmp_path / "x")


class TestNumbers:
    def test_all_are_traced(self, candidate, card):
        assert list(untraced_numbers(candidate, card.text)) == []

    @pytest.mark.parametrize("number", ["81.4", "0.8126", "25,001", "7777", "3e-05"])
    def test_another_number_is_found(self, number, candidate, card):
        assert list(untraced_numbers(candidate, f"{card.text}\n\nIt gets {number} here.")) == [number]

    @pytest.mark.parametrize("number", ["81.25", "81.2", "0.8125", "25,000", "in 2011", "`4242`"])
    def test_numbers_with_a_source(self, number, candidate, card):
        assert list(untraced_numbers(candidate, f"{card.text}\n\nIt gets {number} here.")) == []

    def test_benchmark(self, checkpoint, tmp_path):
        rows = [
            CpuRow(level, "A", SHAPE, 1, "inhibitor", 3, quantiles(milliseconds), quantiles(ratio), None, None)
            for level, milliseconds, ratio in (("model", 31.25, 0.875), ("layer", 1.5, 0.5))
        ]
        CpuResults(MACHINE, rows).write(checkpoint / "cpu.json")
        candidate = assembled(checkpoint, tmp_path / "x")
        text = (candidate.folder / "README.md").read_text()
        assert "On Some Processor" in text
        assert "| inhibitor | 1×12×128×64 | 31.250 | 0.88 |" in text
        assert len(read_benchmarks(checkpoint)[0].results) == 1
        assert list(untraced_numbers(candidate, ModelCard(text).text)) == []

    def test_tables_of_several_processors_are_all_shown(self, checkpoint, tmp_path):
        for name in ("cpu", "cpu_avx2", "cpu_amx"):
            row = CpuRow("model", "A", SHAPE, 1, "inhibitor", 3, quantiles(31.25), quantiles(0.875), None, None)
            CpuResults({**MACHINE, "cpu": f"Processor of {name}"}, [row]).write(checkpoint / f"{name}.json")
        candidate = assembled(checkpoint, tmp_path / "x")
        assert {"cpu.json", "cpu_avx2.json", "cpu_amx.json"} <= candidate.files.keys()
        text = (candidate.folder / "README.md").read_text()
        assert re.findall(r"^On Processor of (\w+) ", text, re.MULTILINE) == ["cpu", "cpu_amx", "cpu_avx2"]
        assert list(untraced_numbers(candidate, ModelCard(text).text)) == []

    def test_kernels_on_a_gpu(self, checkpoint, tmp_path):
        rows = [
            KernelRow("forward", SHAPE, "inhibitor fp32", 3, quantiles(1.5)),
            KernelRow("forward", SHAPE, "softmax fp32", note="out of memory"),
        ]
        KernelResults({"gpu": "Some GPU", **MACHINE}, rows).write(checkpoint / "kernels_gpu.json")
        text = (assembled(checkpoint, tmp_path / "x").folder / "README.md").read_text()
        assert "On Some GPU" in text
        assert "| inhibitor fp32 forward | 1×12×128×64 | 1.500 | not measured |" in text
        assert "softmax fp32 forward" not in text

    @pytest.mark.parametrize(("joules", "shown"), [(0.0125, "0.0125"), (None, "not measured")])
    def test_cost_beside_peers(self, joules, shown, checkpoint, tmp_path):
        setting = Setting("float32", 2, Tokens(8, 128))
        row = ModelRow("inhibitor", setting, 3, 24, quantiles(31.25), 256.5, 300.0, 1000, None, joules)
        ModelResults({**MACHINE, "energy": "Zeus, RAPL"}, [row], []).write(checkpoint / "model_cpu.json")
        candidate = assembled(checkpoint, tmp_path / "x")
        text = (candidate.folder / "README.md").read_text()
        assert f"| inhibitor | float32 | 8×128 | 31.2 | 256.50 | {shown} |" in text
        assert "energy: Zeus, RAPL" in text
        assert "Energy: not measured" not in text
        assert "Speed: not measured" not in text
        assert list(untraced_numbers(candidate, ModelCard(text).text)) == []

    def test_a_file_of_another_form_is_refused(self, checkpoint, tmp_path):
        (checkpoint / "cpu.json").write_text(json.dumps({"machine": MACHINE, "results": [{"level": 1}]}))
        with pytest.raises(UserError, match=r"cpu\.json', row 1 of results: column 'level' must hold text, got 1"):
            assembled(checkpoint, tmp_path / "x")

    def test_deviation_over_trainings_and_a_local_file(self, checkpoint, tmp_path):
        edit_json(checkpoint / "eval_results.json", lambda c: c["results"][0].update(std=0.0125, published=False))
        candidate = assembled(checkpoint, tmp_path / "x")
        text = (candidate.folder / "README.md").read_text()
        assert "± 1.2 |" in text
        assert not any(name.startswith(".eval_results") for name in candidate.files)
        assert list(untraced_numbers(candidate, ModelCard(text).text)) == []


def test_metadata_that_is_not_yaml(checkpoint, tmp_path):
    replace_in(checkpoint / "README.md", "language: en", "language: [en")
    with pytest.raises(UserError, match=r"metadata of 'README\.md' cannot be read"):
        assembled(checkpoint, tmp_path / "x")
