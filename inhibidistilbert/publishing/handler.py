"""Answers the requests of a hosted inference endpoint with the model of the folder that this file lies in.

Hugging Face's inference toolkit imports this file by its path, makes one `EndpointHandler` of the folder, and calls it with
each request. It needs torch and transformers alone.
"""

import os
from typing import Any

from transformers import AutoConfig, pipeline
from transformers.pipelines import PipelineException

# By the end of the model's class: its pipeline, and what a request may set.
_TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Model": ("feature-extraction", ("truncation",)),
    "ForMaskedLM": ("fill-mask", ("targets", "top_k")),
    "ForSequenceClassification": ("text-classification", ("function_to_apply", "top_k", "truncation")),
    "ForTokenClassification": ("token-classification", ("aggregation_strategy", "ignore_labels", "stride")),
}


class EndpointHandler:
    """The pipeline of the checkpoint in `path`, which is the folder of this file and of no other.

    Raises:
        ValueError: another folder, whose code nobody has agreed to run, or a model without a pipeline.
    """

    def __init__(self, path: str = ""):
        # Not the file's real path: in the cache of the Hub a folder holds links.
        here = os.path.dirname(os.path.abspath(__file__))
        if os.path.realpath(path or here) != os.path.realpath(here):
            raise ValueError(f"path must be the folder of handler.py, {here!r}, got {path!r}.")
        config = AutoConfig.from_pretrained(here, trust_remote_code=True)
        architecture = str((config.architectures or [""])[0])
        kind = architecture.removeprefix("InhibiDistilBert")
        if kind not in _TASKS:
            raise ValueError(f"architectures of config.json must name a model with a pipeline, got {architecture!r}.")
        self.task, self.allowed = _TASKS[kind]
        task: Any = self.task  # a name that no overload has is refused above
        self.pipeline = pipeline(task, model=here, trust_remote_code=True)
        self.defaults = _defaults(self.task, config)

    def __call__(self, data: dict[str, Any]) -> list:
        """What the pipeline says to `{"inputs": a text or a list of texts, "parameters": {…}}`.

        Texts longer than the model's positions are cut, unless `truncation` says otherwise.

        Raises:
            ValueError: a request of another form, or a parameter that the pipeline does not take.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError('the request must be an object with "inputs", a text or a list of texts.')
        inputs, parameters = data["inputs"], data.get("parameters") or {}
        texts = [inputs] if isinstance(inputs, str) else inputs
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"inputs must be a text or a list of texts, none of them blank, got {repr(inputs)[:80]}.")
        if not isinstance(parameters, dict):
            raise ValueError(f"parameters must be an object, got {repr(parameters)[:80]}.")
        if unknown := sorted(map(str, parameters.keys() - set(self.allowed))):
            allowed = ", ".join(self.allowed)
            raise ValueError(f"parameters of {self.task} may be {allowed}, got {', '.join(unknown)[:80]}.")
        try:
            return self.pipeline(inputs, **{**self.defaults, **parameters})
        except (LookupError, PipelineException, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{self.task} cannot answer this request: {str(error)[:300]}") from error


def _defaults(task: str, config: Any) -> dict[str, Any]:
    """What a request leaves out. The pipeline of tagging cuts by itself."""
    if task == "fill-mask":
        return {"tokenizer_kwargs": {"truncation": True}}
    if task == "text-classification":
        # A multi-label model gives all its labels, as its card says, where the pipeline's default is one.
        every = {"top_k": None} if config.problem_type == "multi_label_classification" else {}
        return {"truncation": True, **every}
    return {"truncation": True} if task == "feature-extraction" else {}
