"""What the Hub and transformers call the task of each model class."""

from collections.abc import Mapping
from typing import Any

from ..support.heads import MULTI_LABEL
from .markup import python_string

PIPELINE_TAGS = {
    "InhibiDistilBertModel": "feature-extraction",
    "InhibiDistilBertForMaskedLM": "fill-mask",
    "InhibiDistilBertForSequenceClassification": "text-classification",
    "InhibiDistilBertForTokenClassification": "token-classification",
    "InhibiDistilBertForQuestionAnswering": "question-answering",
    "InhibiDistilBertForMultipleChoice": "multiple-choice",
}
# The other two have no pipeline in transformers 5.
PIPELINES = ("feature-extraction", "fill-mask", "text-classification", "token-classification")


def architecture_of(config: Mapping[str, Any]) -> str:
    """The model class that a `config.json` names; empty where it names none."""
    return str((config.get("architectures") or [""])[0])


def has_pipeline(architecture: str) -> bool:
    """Whether transformers has a pipeline for the model class, so that hosted endpoints can serve it."""
    return PIPELINE_TAGS.get(architecture) in PIPELINES


def auto_class(architecture: str) -> str:
    """`"InhibiDistilBertForMaskedLM"` -> `"AutoModelForMaskedLM"`; of a class that is none of these `"AutoModel"`."""
    if architecture not in PIPELINE_TAGS:
        return "AutoModel"
    return architecture.replace("InhibiDistilBert", "AutoModel").replace("ModelModel", "Model")


def is_multi_label(config: Mapping[str, Any]) -> bool:
    """Whether a text has any number of the labels of the classifier with this `config.json`."""
    return config.get("problem_type") == MULTI_LABEL


def usage(architecture: str, repo_id: str, revision: str | None, multi_label: bool = False) -> tuple[str, str]:
    """The two lines that load the model; a multi-label one gives all its labels, where a pipeline's default is one."""
    source = python_string(repo_id) + (f", revision={python_string(revision)}" if revision else "")
    tag = PIPELINE_TAGS.get(architecture, "")
    if tag in PIPELINES:
        every = ", top_k=None" if multi_label and tag == "text-classification" else ""
        call = f'pipeline("{tag}", model={source}, trust_remote_code=True{every})'
        return "from transformers import pipeline", f"model = {call}"
    name = auto_class(architecture)
    call = f"{name}.from_pretrained({source}, trust_remote_code=True)"
    return f"from transformers import {name}", f"model = {call}"
