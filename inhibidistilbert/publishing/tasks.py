"""What the Hub and transformers call the task of each model class."""

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


def auto_class(architecture: str) -> str:
    """`"InhibiDistilBertForMaskedLM"` -> `"AutoModelForMaskedLM"`."""
    return architecture.replace("InhibiDistilBert", "AutoModel").replace("ModelModel", "Model")


def usage(architecture: str, repo_id: str, revision: str | None) -> tuple[str, str]:
    """The two lines that load the model."""
    pinned = f', revision="{revision}"' if revision else ""
    tag = PIPELINE_TAGS.get(architecture, "")
    if tag in PIPELINES:
        call = f'pipeline("{tag}", model="{repo_id}"{pinned}, trust_remote_code=True)'
        return "from transformers import pipeline", f"model = {call}"
    name = auto_class(architecture)
    call = f'{name}.from_pretrained("{repo_id}"{pinned}, trust_remote_code=True)'
    return f"from transformers import {name}", f"model = {call}"
