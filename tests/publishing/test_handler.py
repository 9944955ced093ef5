"""The handler of published folders, called as hosted inference endpoints call it, in a process without this package."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from inhibidistilbert import (
    InhibiDistilBertForMaskedLM,
    InhibiDistilBertForMultipleChoice,
    InhibiDistilBertForQuestionAnswering,
    InhibiDistilBertForSequenceClassification,
    InhibiDistilBertForTokenClassification,
    InhibiDistilBertModel,
    quantize,
)
from inhibidistilbert.publishing.assemble import HANDLER
from inhibidistilbert.publishing.checks import FILE_CHECKS
from inhibidistilbert.support.clean_process import run_script
from tests.helpers import endpoint_client
from tests.helpers.publishable import assembled, write_checkpoint
from tests.helpers.tiny_sentiment import write_tiny_checkpoint

SERVED = {
    "AutoModel": InhibiDistilBertModel,
    "ForMaskedLM": InhibiDistilBertForMaskedLM,
    "ForTokenClassification": InhibiDistilBertForTokenClassification,
}
ONE, TWO = "a quiet film .", ["a quiet film .", "it broke , a quiet film ."]
MASKED = [text.replace("film", "[MASK]") for text in TWO]
REFUSED = {
    "no inputs": ({"text": ONE}, 'an object with "inputs"'),
    "no object": ([ONE], 'an object with "inputs"'),
    "no text": ({"inputs": 7}, "a list of texts, none of them blank, got 7"),
    "no texts": ({"inputs": []}, "none of them blank, got []"),
    "a blank text": ({"inputs": [ONE, " "]}, "none of them blank, got ['a quiet film .', ' ']"),
    "a list of parameters": ({"inputs": ONE, "parameters": [1]}, "parameters must be an object, got [1]"),
    "an unknown parameter": (
        {"inputs": ONE, "parameters": {"device": 0}},
        "parameters of text-classification may be function_to_apply, top_k, truncation, got device",
    ),
    "a wrong value": (
        {"inputs": ONE, "parameters": {"function_to_apply": "guess"}},
        "text-classification cannot answer this request",
    ),
    "another folder": ("/tmp", "path must be the folder of handler.py"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Published folders, by what they are."""
    made, base = {}, tmp_path_factory.mktemp("served")
    made["classifier"] = write_checkpoint(base / "classifier")
    model = InhibiDistilBertForSequenceClassification.from_pretrained(made["classifier"])
    made["int8"] = base / "int8"
    quantize(model).save_pretrained(made["int8"])
    AutoTokenizer.from_pretrained(made["classifier"]).save_pretrained(made["int8"])
    for name, kind in SERVED.items():
        made[name] = write_tiny_checkpoint(base / name, kind)
    labels = {0: "FUNNY", 1: "DARK", 2: "LONG"}
    made["multi-label"] = write_tiny_checkpoint(base / "many", problem_type="multi_label_classification", id2label=labels)
    return {name: str(assembled(folder, base / f"{name}-published").folder) for name, folder in made.items()}


@pytest.fixture(scope="module")
def report(folders, tmp_path_factory) -> dict[str, dict]:
    """The answers of all folders, and those of their pipelines."""
    work = tmp_path_factory.mktemp("endpoint")
    calls = {name: (folders["classifier"], request) for name, (request, _) in REFUSED.items()}
    for name, folder in folders.items():
        texts = MASKED if name == "ForMaskedLM" else TWO
        calls |= {f"{name} one": (folder, {"inputs": texts[0]}), f"{name} two": (folder, {"inputs": texts})}
        calls[f"{name} long"] = (folder, {"inputs": texts[0] + " film" * 100})
    calls["all labels"] = (folders["classifier"], {"inputs": ONE, "parameters": {"top_k": None}})
    calls["no mask"] = (folders["ForMaskedLM"], {"inputs": ONE})
    (work / "calls.json").write_text(json.dumps(calls))
    run_script(endpoint_client.__file__, work / "calls.json", work / "report.json", folder=work, home=work)
    return json.loads((work / "report.json").read_text())


@pytest.mark.parametrize("name", ["classifier", "int8", *SERVED])
def test_answers_are_those_of_the_pipeline(name, report, folders):
    expected = report[f"pipeline {folders[name]}"]
    for call in ("one", "two"):
        answer = report[f"{name} {call}"]["answer"]
        assert isinstance(answer, list)
        assert answer == expected[call]


@pytest.mark.parametrize("name", ["classifier", "int8", "multi-label", *SERVED])
def test_a_text_longer_than_the_model_is_cut(name, report):
    assert report[f"{name} long"]["answer"]


def test_parameters_reach_the_pipeline(report):
    assert {answer["label"] for answer in report["all labels"]["answer"]} == {"NEGATIVE", "POSITIVE"}
    assert len(report["classifier one"]["answer"]) == 1


def test_a_multi_label_model_gives_all_its_labels(report):
    assert {answer["label"] for answer in report["multi-label one"]["answer"]} == {"FUNNY", "DARK", "LONG"}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_request_is_one_clear_error(name, report):
    assert REFUSED[name][1] in report[name]["refused"]


def test_a_text_without_a_mask(report):
    assert "fill-mask cannot answer this request: No mask_token" in report["no mask"]["refused"]


class TestPublishing:
    def test_the_maintainers_own_is_replaced(self, checkpoint, tmp_path):
        """As every source file is: what is sent is this package's."""
        (checkpoint / HANDLER).write_text("raise SystemExit('changed')")
        candidate = assembled(checkpoint, tmp_path / "assembled")
        assert "EndpointHandler" in (candidate.folder / HANDLER).read_text()
        assert list(FILE_CHECKS["files"](candidate)) == list(FILE_CHECKS["known sources"](candidate)) == []

    def test_a_changed_one_is_refused(self, candidate):
        """On the Hub, which `publish --verify` looks at."""
        (candidate.folder / HANDLER).write_text("raise SystemExit('changed')")
        (problem,) = FILE_CHECKS["known sources"](candidate)
        assert (problem.file, problem.what) == (HANDLER, "differs from every known release")

    def test_a_missing_one_is_named(self, candidate):
        (candidate.folder / HANDLER).unlink()
        assert [(p.file, p.what) for p in FILE_CHECKS["known sources"](candidate)] == [(HANDLER, "is missing")]

    @pytest.mark.parametrize("kind", [InhibiDistilBertForQuestionAnswering, InhibiDistilBertForMultipleChoice])
    def test_a_model_without_a_pipeline_has_none(self, kind, tmp_path):
        candidate = assembled(write_tiny_checkpoint(tmp_path / "model", kind), tmp_path / "assembled")
        assert not Path(candidate.folder, HANDLER).exists()
        assert list(FILE_CHECKS["known sources"](candidate)) == []
