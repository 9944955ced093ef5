"""What a stranger does with a checkpoint: run by test_remote_code.py in an interpreter that cannot import this package.

`python -I remote_client.py CALLS.json REPORT.json` makes the calls, `{label: [function, arguments]}`, in order, and writes
`{label: {"value": …}}`, or `{label: {"error": traceback}}` where one failed.
"""

import importlib.util
import json
import sys
import traceback
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedModel

PACKAGE = "inhibidistilbert"
IMPLEMENTATIONS = ("inhibitor", "eager")
SENTENCES = ["the film was a quiet joy", "dull", "a slow story and [MASK] people"]
PIPELINES = {
    "sentiment-analysis": "AutoModelForSequenceClassification",
    "fill-mask": "AutoModelForMaskedLM",
    "feature-extraction": "AutoModel",
    "token-classification": "AutoModelForTokenClassification",
}


class PackageIsAbsent:
    """A meta-path finder for which the package does not exist, however it was installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == PACKAGE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@torch.no_grad()
def model_outputs(model: PreTrainedModel, tokenizer) -> torch.Tensor:
    """The logits, or hidden states of a model without a head, of SENTENCES in one padded batch."""
    return outputs_of_modules(model, tokenizer)


def outputs_of_modules(model: PreTrainedModel, tokenizer) -> torch.Tensor:
    """The same with gradients. Then each layer calls the operator: without them all layers are one compiled call."""
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    if "MultipleChoice" in type(model).__name__:
        inputs = {name: tensor[None] for name, tensor in inputs.items()}
    outputs = model.eval()(**inputs)
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits])
    return (outputs.logits if "logits" in outputs else outputs.last_hidden_state).contiguous()


def run_pipeline(task: str, model, **kwargs) -> list:
    """The answers of `task`'s pipeline to SENTENCES, as JSON has them."""
    texts = SENTENCES[-1:] if task == "fill-mask" else SENTENCES
    answers = [transformers.pipeline(task, model=model, **kwargs)(text) for text in texts]
    return json.loads(json.dumps(answers, default=float))


def load(auto_class: str, source: str, **kwargs):
    return getattr(transformers, auto_class).from_pretrained(source, trust_remote_code=True, **kwargs)


def config_fields(source: str, fields: list[str]) -> dict:
    config = load("AutoConfig", source)
    return {"class": type(config).__name__, **{name: getattr(config, name) for name in fields}}


def outputs(sources: dict[str, str], target: str, revision: str | None = None) -> None:
    """Write the outputs of every model under every implementation: `{"<Auto class>/<implementation>": tensor}`."""
    tensors = {}
    for auto_class, source in sources.items():
        tokenizer = load("AutoTokenizer", source, revision=revision)
        first, *others = reversed(IMPLEMENTATIONS)  # the default last
        model = load(auto_class, source, attn_implementation=first, revision=revision)
        for name in (first, *others):
            model.set_attn_implementation(name)
            tensors[f"{auto_class}/{name}"] = model_outputs(model, tokenizer)
    save_file(tensors, target)


@torch.no_grad()
def students(sources: dict[str, list[str]], inputs: str, target: str, again: str) -> dict[str, str]:
    """Write the logits of students in transformers' own classes: `{"<name>": tensor}`, and those of the saved once more.

    sources: an Auto class and a folder, by name. inputs: what each is given, `<name>/<argument>`. Returns the errors of
    loading without trust.
    """
    errors = {name: error_of(load_untrusted, auto_class, source) for name, (auto_class, source) in sources.items()}
    tensors, given = {}, load_file(inputs)
    for name, (auto_class, source) in sources.items():
        arguments = {key.partition("/")[2]: x for key, x in given.items() if key.startswith(f"{name}/")}
        for label, folder in ((name, source), (f"{name} again", str(Path(again, name)))):
            model = load(auto_class, folder)
            tensors[label] = model(**arguments).logits
            if label == name:
                model.save_pretrained(Path(again, name))
    save_file(tensors, target)
    return errors


def losses_and_gradients(source: str, auto_class: str, implementations: list[str], target: str) -> list[str]:
    """Write the loss and every parameter's gradient: `{"<implementation>/<loss or parameter>": tensor}`.

    Of the first layer alone and one padded sentence: Triton's interpreter takes seconds for more.
    Returns the modules of the folder's Triton backend that were imported.
    """
    tensors, tokenizer = {}, load("AutoTokenizer", source)
    inputs = tokenizer(SENTENCES[:1], padding="max_length", max_length=10, return_tensors="pt")
    for name in implementations:
        model = load(auto_class, source, attn_implementation=name).eval()
        model.distilbert.transformer.layer = model.distilbert.transformer.layer[:1]
        loss = model(**inputs, labels=torch.tensor([1])).loss
        loss.backward()
        tensors[f"{name}/loss"] = loss.detach()
        tensors |= {f"{name}/{n}": parameter.grad for n, parameter in model.named_parameters() if parameter.grad is not None}
    save_file(tensors, target)
    return [name for name in sys.modules if name.startswith("transformers_modules.") and "inhibitor_triton" in name]


def hide(package: str) -> bool:
    """Have `package` look as if it were not installed."""
    sys.modules[package] = None  # type: ignore[assignment]
    return importlib.util.find_spec(package) is None


def forward_errors(source: str, auto_class: str, implementations: list[str]) -> dict[str, str]:
    """The errors of the first call under each implementation."""
    tokenizer = load("AutoTokenizer", source)
    models = {name: load(auto_class, source, attn_implementation=name) for name in implementations}
    return {name: error_of(model_outputs, model, tokenizer) for name, model in models.items()}


def pipelines(sources: dict[str, str]) -> dict[str, list]:
    """Of every task whose model is among `sources`."""
    tasks = [task for task, auto_class in PIPELINES.items() if auto_class in sources]
    return {task: run_pipeline(task, sources[PIPELINES[task]], trust_remote_code=True) for task in tasks}


def save_again(sources: dict[str, str], target: str) -> None:
    """Save what the Auto classes load, model and tokenizer, each under its Auto class's name."""
    for auto_class, source in sources.items():
        load(auto_class, source).save_pretrained(Path(target, auto_class))
        load("AutoTokenizer", source).save_pretrained(Path(target, auto_class))


def save_new_from_config(source: str, target: str) -> None:
    """A freshly initialised model from someone's configuration, as a training script makes one."""
    model = transformers.AutoModel.from_config(load("AutoConfig", source), trust_remote_code=True)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, trust_remote_code=True).save_pretrained(target)


def refusals(source: str, auto_classes: list[str]) -> dict[str, str]:
    """The errors of loading without trust, by what was tried."""
    attempts = {name: lambda name=name, **trust: load_untrusted(name, source, **trust) for name in auto_classes}
    attempts["pipeline"] = lambda **trust: transformers.pipeline("sentiment-analysis", model=source, **trust)
    messages = {}
    for name, attempt in attempts.items():
        messages[name] = error_of(attempt)
        messages[f"{name}, trust_remote_code=False"] = error_of(attempt, trust_remote_code=False)
    return messages


def load_untrusted(auto_class: str, source: str, **trust):
    return getattr(transformers, auto_class).from_pretrained(source, **trust)


def load_errors(sources: dict[str, str], auto_class: str) -> dict[str, str]:
    return {name: error_of(load, auto_class, source) for name, source in sources.items()}


def error_of(function, *args, **kwargs) -> str:
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def run_marked(source: str, auto_class: str) -> str:
    return type(load(auto_class, source)).__name__


def two_versions(ours: str, other: str, auto_class: str) -> dict[str, bool]:
    """Does each checkpoint run its own operator, when `other`, with another operator, is loaded between two of `ours`?"""
    tokenizer = load("AutoTokenizer", ours)
    first = load(auto_class, ours)
    before = outputs_of_modules(first, tokenizer)
    theirs = outputs_of_modules(load(auto_class, other), tokenizer)
    return {
        "the other differs": not torch.equal(theirs, before),
        "the first still runs its own": torch.equal(outputs_of_modules(first, tokenizer), before),
        "loaded anew it runs its own": torch.equal(outputs_of_modules(load(auto_class, ours), tokenizer), before),
    }


def in_turn(sources: list[str], auto_class: str) -> list[list[list[float]]]:
    """The logits of every checkpoint, each computed when all of them are loaded."""
    tokenizer = load("AutoTokenizer", sources[0])
    models = [load(auto_class, source) for source in sources]
    return [outputs_of_modules(model, tokenizer).tolist() for model in models]


def rewritten(source: str, other: str, auto_class: str) -> list[list[list[float]]]:
    """The logits of the checkpoint in `source`, and those after `other`'s code was written over its own."""
    tokenizer = load("AutoTokenizer", source)
    models = [load(auto_class, source)]
    for file in Path(other).glob("*.py"):
        Path(source, file.name).write_bytes(file.read_bytes())
    models.append(load(auto_class, source))
    return [outputs_of_modules(model, tokenizer).tolist() for model in models]


def package_modules() -> list[str]:
    """Modules of this package that are loaded. There must be none."""
    return [name for name in sys.modules if name.partition(".")[0] == PACKAGE]


def main(calls_file: str, report_file: str) -> None:
    sys.meta_path.insert(0, PackageIsAbsent)
    report = {}
    for label, (function, arguments) in json.loads(Path(calls_file).read_text()).items():
        try:
            report[label] = {"value": globals()[function](**arguments)}
        except Exception:
            report[label] = {"error": traceback.format_exc()}
    report["package modules"] = {"value": package_modules()}
    Path(report_file).write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
