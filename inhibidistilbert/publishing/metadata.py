"""What the Hub takes as the metadata of a card and as an entry of results, and git as the name of a branch or tag."""

import difflib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from iso639 import Language, LanguageNotFoundError

from ..support.errors import UserError
from ..support.eval_results import is_date
from .tasks import PIPELINE_TAGS

RELATIONS = ("finetune", "adapter", "merge", "quantized")
# Ids have the form of paths: these folders, and names of files, are of a disk.
_FOLDERS = (
    r"runs?|outputs?|out|data|datasets?|models?|checkpoints?|ckpts?|results?|logs?|te?mp|cache|experiments?|exp|saved?|saved_models"
    r"|weights|artifacts?|local|home|mnt|scratch|work|workspace|src|files|spaces|train|training|teachers?|students?"
)
_FILES = r"csv|tsv|txt|jsonl?|ya?ml|parquet|arrow|gz|zip|tar|zst|bin|pt|pth|ckpt|safetensors|onnx|md|py"
_LOCAL = re.compile(rf"(?:{_FOLDERS})/.*|.*\.(?:{_FILES})|.*/checkpoint-\d+", flags=re.IGNORECASE)
_REF = re.compile(r"[A-Za-z0-9](?:[\w.+-]*[\w+-])?(?:/[A-Za-z0-9_](?:[\w.+-]*[\w+-])?)*", flags=re.ASCII)
_RANGES = (
    (r"accuracy|f1|precision|recall|auc|exact_match|jaccard|ndcg|mrr", 0.0, 1.0, "a fraction from 0 to 1"),
    (r"matthews\w*|mcc|pearson\w*|spearman\w*|kendall\w*|kappa", -1.0, 1.0, "from -1 to 1"),
    (r"loss|mse|rmse|mae|error|wer|cer|brier\w*|perplexity", 0.0, math.inf, "0 or more"),
)


def check_ref_name(argument: str, name: str) -> None:
    """Raises `UserError` unless git takes `name` for a branch or tag.

    Git takes quotation marks, brackets and more as well; nobody misses them, and names stand in code, links and tables.
    """
    locked = any(part.endswith(".lock") for part in name.split("/"))
    if not _REF.fullmatch(name) or ".." in name or locked or name == "HEAD" or len(name) > 200:
        raise UserError(f"{argument} must be a name of letters, digits and . _ - + /, as git takes it (v1.0), got {name!r}.")


def hub_id_problem(value: object) -> str | None:
    """Why `value` is no id of a model or of data on the Hub; None where it may be one."""
    if not isinstance(value, str):
        return f"{value!r} is no text"
    try:
        validate_repo_id(value)
    except HFValidationError:
        return f"{value!r} has not the form organisation/name"
    return f"{value!r} is a path on a disk" if _LOCAL.fullmatch(value) else None


def metric_problem(metric: str, value: object) -> str | None:
    """Why `value` cannot be one of the metric called `metric`; None where it can."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{metric} must be a number, got {value!r}"
    if not math.isfinite(value):
        return f"{metric} must be finite, got {value}"
    for names, least, most, words in _RANGES:
        if re.search(rf"(?:^|_)(?:{names})(?:_|$)", metric.lower()) and not least <= value <= most:
            return f"{metric} must be {words}, got {value}"
    return None


def repeated_name(text: str) -> str | None:
    """A name that stands twice in the YAML object `text`, of which most readers see the last and the Hub none."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    names = [str(name.value) for name, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    return next((name for name in names if names.count(name) > 1), None)


def metadata_problems(data: Mapping[str, Any], names: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """What the Hub would not take of a card's metadata, and the remedy. What is not there is no problem here.

    names: of the files beside the card.
    """
    for what, remedy in _field_problems(data, names):
        yield what, f"{remedy}, in the metadata of the folder's README.md"
    for what in _model_index_problems(data.get("model-index") or []):
        yield f"model-index: {what}", "correct it in the files of results"


def _field_problems(data: Mapping[str, Any], names: Collection[str]) -> Iterator[tuple[str, str]]:
    if "license" in data:
        yield from _license_problems(data, names)
    for language in as_list(data.get("language")):
        yield from _language_problems(language)
    for name in ("base_model", "datasets"):
        for problem in filter(None, map(hub_id_problem, as_list(data.get(name)))):
            yield f"{name}: {problem}", "give the id that it has on the Hub, organisation/name"
    for name, known in {"base_model_relation": RELATIONS, "pipeline_tag": (*PIPELINE_TAGS.values(),)}.items():
        if data.get(name) not in (None, *known):
            yield f"{name} is {data[name]!r}", f"give one of {', '.join(known)}"
    if not isinstance(data.get("library_name", ""), str):
        yield f"library_name is {data['library_name']!r}", "give one name"
    for name in ("tags", "metrics"):
        given = data.get(name) or []
        if not isinstance(given, list) or not all(
            isinstance(word, str) and re.fullmatch(r"\S(.*\S)?", word) for word in given
        ):
            yield f"{name} is {given!r}", "give a list of words, each on a line; quote numbers and yes, no, on, off"
    widgets = data.get("widget") or []
    if not isinstance(widgets, list) or not all(isinstance(w, dict) and isinstance(w.get("text", ""), str) for w in widgets):
        yield f"widget is {widgets!r}", "give a list of `- text: An example.`; quote numbers"


def as_list(value: Any) -> list[Any]:
    """A field of the metadata, which may be one thing or several, as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _license_problems(data: Mapping[str, Any], names: Collection[str]) -> Iterator[tuple[str, str]]:
    given, known = data["license"], _identifiers()["licenses"]
    if not isinstance(given, str) or given not in known:
        near = difflib.get_close_matches(str(given).lower().replace(" ", "-"), known, n=1)
        listed = "one of https://huggingface.co/docs/hub/repositories-licenses, or `other` with a name and a link"
        yield f"license is {given!r}, which the Hub does not know", f"give {f'`{near[0]}`, or ' if near else ''}{listed}"
    if given != "other":
        return
    name, link = data.get("license_name"), data.get("license_link")
    if not (isinstance(name, str) and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name)):
        yield f"license is 'other' and license_name {name!r}", "add license_name, an id such as my-license-1.0"
    if not (isinstance(link, str) and (re.fullmatch(r"https?://[\w.-]+\S*", link) or link == "LICENSE")):
        yield f"license is 'other' and license_link {link!r}", "add license_link, an address or LICENSE"
    elif link == "LICENSE" and link not in names:
        yield "license_link names LICENSE, which is missing", "add the file, or give an address"


def _language_problems(language: object) -> Iterator[tuple[str, str]]:
    if isinstance(language, bool):
        yield f"language is {language!r}", "quote it: YAML reads no as false"
    elif not isinstance(language, str) or not _is_language(language):
        codes = "a code of ISO 639-1, 639-2 or 639-3 in small letters (en, deu), multilingual or code"
        yield f"language is {language!r}, which the Hub does not know", f"give {codes}"


def _is_language(code: str) -> bool:
    if code in ("multilingual", "code") or code in _identifiers()["language_groups"]:
        return True
    for find in (Language.from_part1, Language.from_part3, Language.from_part2b):
        try:
            find(code)
        except LanguageNotFoundError:
            continue
        return True
    return False


def _model_index_problems(index: Any) -> Iterator[str]:
    """The older form of results, within the card."""
    try:
        for model in index:
            for result in model["results"]:
                texts = (model["name"], result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"])
                if not all(isinstance(text, str) and text.strip() for text in texts):
                    yield f"names and types must be text, got {texts!r}"
                for metric in result["metrics"]:
                    if problem := metric_problem(str(metric["type"]), metric["value"]):
                        yield problem
    except (KeyError, TypeError):
        yield "it is not of its form"


def result_problems(entries: object) -> Iterator[str]:
    """What the Hub would not take of a file in `.eval_results`."""
    parts: list[Any] = entries if isinstance(entries, list) else [None]
    if not all(isinstance(entry, dict) and isinstance(entry.get("dataset"), dict) for entry in parts):
        yield "is no list of results, each with a dataset"
        return
    for entry in parts:
        dataset, source = entry["dataset"], entry.get("source") or {}
        if problem := hub_id_problem(dataset.get("id")):
            yield f"dataset.id: {problem}"
        if not re.fullmatch(r"[\w.-]+", str(dataset.get("task_id") or "")):
            yield f"dataset.task_id is {dataset.get('task_id')!r}"
        if problem := metric_problem(str(entry.get("notes") or "value").partition(",")[0], entry.get("value")):
            yield problem
        if not is_date(entry.get("date")):
            yield f"date is {entry.get('date')!r}, no text of the form 2026-01-31"
        if not all(isinstance(text, str | None) for text in (dataset.get("revision"), entry.get("notes"))):
            yield "revision and notes must be text"
        if source and not re.match(r"https?://", str(source.get("url"))):
            yield f"source.url is {source.get('url')!r}"


@cache
def _identifiers() -> dict[str, list[str]]:
    return json.loads((files("inhibidistilbert") / "hub_configs" / "hub_identifiers.json").read_text(encoding="utf-8"))
