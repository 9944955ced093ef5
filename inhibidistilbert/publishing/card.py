"""The model card: rendered from a template, with numbers from the files of results alone.

What no file of results can tell stands in the maintainer's own `README.md`: its metadata (licence, language, base model,
datasets, widget) and its sections are kept, but for those that the template writes: `KEPT_SECTIONS` say which parts of these
are the maintainer's.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump

from ..modeling.configuration_inhibidistilbert import InhibiDistilBertConfig
from ..support.distillation_log import DistillationLog
from ..support.errors import UserError, reason
from ..support.eval_results import EVAL_RESULTS
from ..support.files import form_of, write_text
from .contents import parameter_counts
from .markup import Markdown, code, escape, finalize, python_string
from .measurements import (
    DISTILLATION,
    Measurement,
    read_benchmarks,
    read_costs,
    read_distillation,
    read_measurements,
)
from .metadata import as_list, repeated_name
from .source import check_source
from .tasks import PIPELINE_TAGS, architecture_of, auto_class, is_multi_label, usage

CARD = "README.md"
ENTRIES = ".eval_results"
TAGS = ("custom_code", "inhibitor-attention", "distillation")
# By their names in the template.
KEPT_SECTIONS = {"evaluation_notes": "Evaluation notes", "limits": "Limits and bias", "terms": "Terms"}
# Fractions on file, percentages on the card.
_PERCENT = (
    *("accuracy", "f1", "precision", "recall", "matthews_correlation", "exact_match"),
    *("f1_micro", "f1_macro", "average_precision"),
)
_KEPT_METADATA = ("language", "license", "license_name", "license_link", "base_model", "base_model_relation", "datasets")


@dataclass(frozen=True)
class Weights:
    """What the headers of the safetensors files say."""

    parameters: int
    bytes: int
    dtypes: str


def template_text() -> str:
    """The template of the card's text, in Jinja's language."""
    return (files("inhibidistilbert") / "hub_configs" / "model_card.md").read_text(encoding="utf-8")


def read_card(folder: Path) -> ModelCard:
    """The card in `folder`; an empty one where there is none.

    Raises:
        UserError: metadata that is not YAML, or gives a thing twice.
    """
    try:
        repeated, card = repeated_name(metadata_text(folder)), ModelCard(_content(folder))
    except Exception as error:  # PyYAML has its own.
        raise UserError(f"the metadata of {CARD!r} cannot be read: {reason(error)}") from error
    if repeated is not None:
        raise UserError(f"the metadata of {CARD!r} gives {repeated!r} twice: leave one.")
    return card


def read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of the card in `folder` as it is written, without what huggingface_hub makes of it.

    Raises:
        UserError: as `read_card`.
    """
    read_card(folder)
    return yaml.safe_load(metadata_text(folder)) or {}


def metadata_text(folder: Path) -> str:
    """The YAML at the head of the card in `folder`; empty where there is none."""
    match = REGEX_YAML_BLOCK.search(_content(folder))
    return match[2] if match else ""


def _content(folder: Path) -> str:
    file = folder / CARD
    return file.read_text(encoding="utf-8-sig") if file.is_file() else "---\n{}\n---\n"


def section(text: str, title: str) -> str:
    """The text below the heading `## title`, up to the next such heading; empty where there is none."""
    match = re.search(rf"^## {re.escape(title)}\s*\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return match[1].strip() if match else ""


def _titles(text: str) -> list[str]:
    return re.findall(r"^## (.+?)\s*$", text, flags=re.MULTILINE)


def own_sections(text: str) -> str:
    """The sections of a maintainer's card that are neither the template's nor parts of these, as they are written there."""
    others = {*_titles(template_text()), *KEPT_SECTIONS.values()}
    own = dict.fromkeys(title for title in _titles(text) if title not in others)
    return "\n\n".join(f"## {title}\n\n{section(text, title)}" for title in own)


def dropped_sections(text: str) -> list[str]:
    """Headings of a maintainer's card whose text the rendered card does not take over, for it writes its own."""
    written = set(_titles(template_text())) - {*KEPT_SECTIONS.values()}
    above = re.sub(r"^# .*$", "", re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0], flags=re.MULTILINE).strip()
    return ["the text above the first one"] * bool(above) + [title for title in _titles(text) if title in written]


def init_card(folder: Path) -> Path:
    """Write a card in which the maintainer fills in what no file of results can tell. Returns its path.

    Raises:
        UserError: no checkpoint of this kind, or one that has a card, which is left alone.
    """
    check_source(folder)
    file = folder / CARD
    if os.path.lexists(file):
        raise UserError(f"--init-card: {str(file)!r} is there already; edit it, or move it away.")
    write_text(file, (files("inhibidistilbert") / "hub_configs" / "card_to_fill_in.md").read_text(encoding="utf-8"))
    return file


def weights_of(folder: Path) -> Weights:
    """Count the parameters in the safetensors files of `folder`; a file that cannot be read counts nothing."""
    size, parameters = 0, Counter[str]()
    for file in sorted(folder.glob("*.safetensors")):
        size += file.stat().st_size
        parameters.update(parameter_counts(file))
    return Weights(parameters.total(), size, ", ".join(name for name, _ in parameters.most_common()))


def render_card(folder: Path, config: dict[str, Any], repo_id: str, revision: str | None) -> None:
    """Write the card of the checkpoint in `folder` in place of the maintainer's, with what that alone can know.

    Raises:
        UserError: metadata or files of results that cannot be read.
    """
    former, metadata, measurements = read_card(folder), read_metadata(folder), read_measurements(folder)
    data = _metadata(metadata, config, measurements, repo_id)
    # Whatever is not `Markdown` is escaped.
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, finalize=finalize, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    text = environment.from_string(template_text()).render(
        **_model_facts(folder, config, repo_id, revision),
        **_result_facts(folder, measurements),
        **_former_facts(former, metadata),
    )
    text = re.sub(r"\n{3,}", "\n\n", text)
    (folder / CARD).write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")


def _model_facts(folder: Path, config: dict[str, Any], repo_id: str, revision: str | None) -> dict[str, Any]:
    architecture, labels = architecture_of(config), config.get("id2label")
    config = InhibiDistilBertConfig().to_dict() | config
    return {
        "name": repo_id.partition("/")[2],
        "source": Markdown(python_string(repo_id) + (f", revision={python_string(revision)}" if revision else "")),
        "config": config,
        "weights": weights_of(folder),
        "task": PIPELINE_TAGS.get(architecture, "unknown"),
        "labels": list(labels.values()) if isinstance(labels, dict) and "Classification" in architecture else [],
        "multi_label": is_multi_label(config),
        "formula": Markdown(_formula(config)),
        "usage": [Markdown(line) for line in usage(architecture, repo_id, revision, is_multi_label(config))],
        "auto_class": Markdown(auto_class(architecture)),
    }


def _formula(config: dict[str, Any]) -> str:
    """From the scores S to the output H."""
    gate = config["inhibition"] == "gate"
    factor = {"sqrt": "β/√n", "mean": "β/n"}.get(str(config["length_normalization"]), "β")
    inhibition = "[relu(v⁺ − Z) − relu(v⁻ − Z)]" if config["signed"] else "relu(v − Z)"
    if gate:
        inhibition = "[relu(v/2 − Z) − relu(−v/2 − Z)]"
    divisor = ""
    if config["length_normalization"] == "passed":
        divisor = f" / (0.001 + Σ {'min(1, relu(1/2 − δZ))' if gate else 'relu(1 − δZ)'})"
    return f"Z = {'S + α' if gate else 'relu(S + α)'}; H = {factor} · Σ {inhibition}{divisor}"


def _result_facts(folder: Path, measurements: Sequence[Measurement]) -> dict[str, Any]:
    log = read_distillation(folder)
    names = (EVAL_RESULTS, DISTILLATION)
    return {
        "measurements": [_row(measurement) for measurement in measurements],
        "percent": any(measurement.metric in _PERCENT for measurement in measurements),
        "sources": Markdown(" and ".join(code(name) for name in names if (folder / name).is_file())),
        "training": _training(log) if log else None,
        "benchmarks": read_benchmarks(folder),
        "costs": read_costs(folder),
        "machine": log.machine if log else None,
    }


def _former_facts(former: ModelCard, metadata: dict[str, Any]) -> dict[str, Any]:
    datasets, base_models = ([str(name) for name in as_list(metadata.get(key))] for key in ("datasets", "base_model"))
    links = (f"[{escape(name)}](https://huggingface.co/datasets/{quote(name)})" for name in datasets)
    return {
        "datasets": datasets,
        "dataset_links": Markdown(", ".join(links)),
        "license": metadata.get("license") or "",
        "own_sections": Markdown(own_sections(former.text)),
        "base_model": ", ".join(base_models),
        **{name: Markdown(section(former.text, title)) for name, title in KEPT_SECTIONS.items()},
    }


def _row(measurement: Measurement) -> dict[str, Any]:
    """A line of the evaluation table."""

    def shown(value: float | None) -> str:
        if value is None:
            return "not measured"
        return f"{100 * value:.1f}" if measurement.metric in _PERCENT else f"{value:.4f}"

    texts = f"{measurement.dataset}, {measurement.split}" if measurement.split else measurement.dataset
    control = shown(measurement.control)
    value = shown(measurement.value) + (f" ± {shown(measurement.std)}" if measurement.std is not None else "")
    named = f"{control} ({measurement.control_model})" if measurement.control_model else control
    counted, metric = measurement.examples, measurement.metric
    return {"texts": texts, "examples": counted, "metric": metric, "value": value, "control": named}


def _training(log: DistillationLog) -> dict[str, Any]:
    """As the template prints it: a sentence a stage. Raises `UserError` where the recipe is not of its form."""
    with form_of(DISTILLATION):
        stages: list[str] = []
        for name, teacher, course in log.trainings():
            taught = f", teacher {code(Path(teacher).name)}" if teacher else ""
            stages.append(Markdown(f"{escape(name)}{taught}: {escape(course)}"))
        recipe = log.recipe
        return {
            "student": code(Path(recipe["student"]["source"]).name),
            "stages": stages,
            "seed": recipe["seed"],
            "bf16": "yes" if recipe["bf16"] else "no",
            "save_dtype": recipe["save_dtype"],
        }


def _metadata(
    former: dict[str, Any], config: dict[str, Any], measurements: Sequence[Measurement], repo_id: str
) -> ModelCardData:
    architecture = architecture_of(config)
    task, own = PIPELINE_TAGS.get(architecture), as_list(former.get("tags") or None)
    kept: dict[str, Any] = {name: former.get(name) for name in _KEPT_METADATA}
    if former.get("widget") is not None:
        kept["widget"] = former["widget"]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        metrics=sorted({measurement.metric for measurement in measurements}) or former.get("metrics"),
        tags=[*TAGS, *(tag for tag in own if tag not in TAGS)],
        model_name=repo_id.partition("/")[2],
        eval_results=[_eval_result(measurement, task or "other") for measurement in measurements] or None,
        **kept,
    )


def _eval_result(measurement: Measurement, task: str) -> EvalResult:
    return EvalResult(
        task_type=task,
        dataset_type=measurement.dataset,
        dataset_name=measurement.dataset,
        dataset_config=measurement.config,
        dataset_split=measurement.split,
        dataset_revision=measurement.revision,
        metric_type=measurement.metric,
        metric_value=measurement.value,
    )


def write_eval_results(folder: Path) -> None:
    """Write the Hub's evaluation entries, one file a published dataset: `.eval_results/imdb.yaml`."""
    entries: dict[str, list[EvalResultEntry]] = {}
    for measurement in read_measurements(folder):
        if measurement.published:
            entries.setdefault(measurement.dataset, []).append(_entry(measurement))
    for dataset, of_dataset in entries.items():
        file = folder / ENTRIES / f"{dataset.replace('/', '--')}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml_dump(eval_result_entries_to_yaml(of_dataset), sort_keys=False), encoding="utf-8")


def _entry(measurement: Measurement) -> EvalResultEntry:
    return EvalResultEntry(
        dataset_id=measurement.dataset,
        task_id=measurement.task_id,
        value=measurement.value,
        dataset_revision=measurement.revision,
        date=measurement.date,
        notes=f"{measurement.metric}, {measurement.split}, {measurement.examples} examples",
    )
