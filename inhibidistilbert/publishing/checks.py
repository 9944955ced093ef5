"""The gate: what must hold of a folder before it may go to the Hub. Each check names the file and the remedy."""

import fnmatch
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_imports

from ..modeling.modeling_inhibidistilbert import SCALARS
from ..modeling.sources import AUTO_MAP
from ..support.errors import UserError, reason
from ..support.foreign import ForeignFieldError, choices, weight_map
from ..support.models import TOKENIZER_FILES, load_tokenizer
from .assemble import HANDLER, Candidate, allowed_names
from .card import CARD, ENTRIES, read_card, read_metadata, section, template_text
from .contents import parameter_counts, pieces
from .known_sources import differences, releases
from .measurements import RESULT_FILES
from .metadata import as_list, metadata_problems, result_problems
from .private_paths import find_private_paths
from .secrets import redact, secrets_in
from .tasks import PIPELINE_TAGS, has_pipeline

_SAVE_AGAIN = "save model and tokenizer again with save_pretrained"
READ_IT = "read it; --verify with --trust-remote-code runs it all the same, without token and home"
KNOWN_SOURCES = "known sources"
PLACEHOLDER = re.compile(r"\{\{|\{%|\[More Information Needed\]|<organi[sz]ation>|\bTODO\b|\bTBD\b|\bFIXME\b")
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file, and what the maintainer can do."""

    file: str
    what: str
    remedy: str


@dataclass(frozen=True)
class CheckResult:
    name: str
    problems: tuple[Problem, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.problems


Check = Callable[[Candidate], Iterator[Problem]]


def run_checks(candidate: Candidate, checks: dict[str, Check], last: dict[str, Check] | None = None) -> list[CheckResult]:
    """Every check, in order; then those of `last`, which run the code in the folder, once all others have passed.

    What a problem says is without the secrets that the files may hold.
    """
    results = [_result(name, check, candidate) for name, check in checks.items()]
    if last and all(result.passed for result in results):
        results += [_result(name, check, candidate) for name, check in last.items()]
    return results


def _result(name: str, check: Check, candidate: Candidate) -> CheckResult:
    """What a check finds. Files of another form than it reads, such as a list in place of an object, fail it."""
    try:
        return CheckResult(name, tuple(map(_redacted, check(candidate))))
    except HfHubHTTPError:  # the Hub's failure, not the files'
        raise
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        what = f"its files are of another form: {type(error).__name__}: {reason(error)}"
        return CheckResult(name, (_redacted(Problem(name, what, _SAVE_AGAIN)),))


def _redacted(problem: Problem) -> Problem:
    token = get_token()
    return Problem(redact(problem.file, token), redact(problem.what, token), redact(problem.remedy, token))


def check_files(candidate: Candidate) -> Iterator[Problem]:
    """Only files of known names; weights as safetensors, all shards of them."""
    names, allowed = candidate.files, allowed_names().union(*releases("model").values())
    for name in names:
        if not any(fnmatch.fnmatch(name, pattern) for pattern in (*allowed, f"{ENTRIES}/*.yaml")):
            yield Problem(name, "is not a file of a published checkpoint", "remove it")
    if not any(name.endswith(".safetensors") for name in names):
        pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in candidate.source.glob(pattern)]
        found = f" ({', '.join(sorted(pickles))} would run code when read)" if pickles else ""
        yield Problem("model.safetensors", f"is missing{found}", f"{_SAVE_AGAIN}, which writes safetensors")
    if "model.safetensors.index.json" in names:
        try:
            shards = set(weight_map(names["model.safetensors.index.json"]).values())
        except (UserError, ForeignFieldError) as error:
            yield Problem("model.safetensors.index.json", reason(error).removesuffix("."), _SAVE_AGAIN)
            return
        for shard in sorted(shards - names.keys()):
            yield Problem(shard, "is named by model.safetensors.index.json and missing", _SAVE_AGAIN)


def check_weights(candidate: Candidate) -> Iterator[Problem]:
    """Every tensor is readable and finite, and every attention has its scalars."""
    names: set[str] = set()
    for file in sorted(candidate.folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dictionary
                    names.add(name)
                    if not tensors.get_tensor(name).isfinite().all():
                        yield Problem(file.name, f"{name} is not finite", "go back to an earlier checkpoint of the training")
        except (SafetensorError, OSError) as error:
            yield Problem(file.name, f"cannot be read: {reason(error)}", _SAVE_AGAIN)
            return
    prefix = "" if any(name.startswith("transformer.") for name in names) else "distilbert."
    # More layers than tensors lack some anyway.
    layers = min(int(candidate.config.get("n_layers", 0)), len(names) + 1)
    scalars = SCALARS if candidate.config.get("length_normalization") == "passed" else SCALARS[:3]
    wanted = {f"{prefix}transformer.layer.{i}.attention.{name}" for i in range(layers) for name in scalars}
    if names and (missing := sorted(wanted - names)):
        yield Problem("model.safetensors", f"lacks {len(missing)} scalars of the attention, first {missing[0]}", _SAVE_AGAIN)


def check_auto_map(candidate: Candidate) -> Iterator[Problem]:
    """`config.json` names the class for every Auto class, and one architecture that exists."""
    auto_map = candidate.config.get("auto_map") or {}
    wrong = sorted(name for name, reference in AUTO_MAP.items() if auto_map.get(name) != reference)
    if wrong:
        yield Problem("config.json", f"auto_map has no or another entry for {', '.join(wrong)}", _SAVE_AGAIN)
    if foreign := sorted(auto_map.keys() - AUTO_MAP.keys()):
        yield Problem("config.json", f"auto_map has an unknown entry {', '.join(foreign)}", _SAVE_AGAIN)
    if candidate.architecture not in PIPELINE_TAGS:
        known = ", ".join(PIPELINE_TAGS)
        yield Problem("config.json", f"architectures must name one of {known}, got {candidate.architecture!r}", _SAVE_AGAIN)


def check_remote_code(candidate: Candidate) -> Iterator[Problem]:
    """Every module that `auto_map` or another source file names is there."""
    names = candidate.files
    references = [str(reference) for reference in (candidate.config.get("auto_map") or {}).values()]
    wanted = {f"{reference.partition('.')[0]}.py" for reference in references}
    checked: set[str] = set()
    while wanted:
        name = wanted.pop()
        checked.add(name)
        if name not in names:
            yield Problem(name, "is missing, but auto_map or another source file names it", f"{_SAVE_AGAIN} of this package")
        else:
            wanted |= {f"{module}.py" for module in get_relative_imports(names[name])} - checked


def check_known_sources(candidate: Candidate) -> Iterator[Problem]:
    """Every source file is, by its content, that of this version or of a release. None is imported."""
    code = {name: file for name, file in candidate.files.items() if name.endswith(".py")}
    # A model without a pipeline has no handler.
    absent = set() if has_pipeline(candidate.architecture) else {HANDLER} - code.keys()
    for name, what in differences(code, "model"):
        if name not in absent:
            yield Problem(name, what, READ_IT)


def check_choices(candidate: Candidate) -> Iterator[Problem]:
    """No field of the configuration or the tokenizer chooses other code, another repository or another file."""
    for name, what in choices(candidate.folder):
        yield Problem(name, what, f"take it out of the file, or {_SAVE_AGAIN} of this package")


def check_tokenizer(candidate: Candidate) -> Iterator[Problem]:
    """The tokenizer loads and fits the vocabulary, the positions and the inputs of the model."""
    if not candidate.files.keys() & TOKENIZER_FILES:
        yield Problem("tokenizer.json", "is missing", _SAVE_AGAIN)
        return
    try:
        tokenizer = load_tokenizer(candidate.folder, "it")
    except UserError as error:
        yield Problem("tokenizer.json", f"cannot be loaded: {reason(error).removesuffix('.')}", _SAVE_AGAIN)
        return
    vocabulary, positions = candidate.config.get("vocab_size", 0), candidate.config.get("max_position_embeddings", 0)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not vocabulary // 2 <= largest < vocabulary:
        what = f"has ids up to {largest}, the model {vocabulary} embeddings"
        yield Problem("tokenizer.json", what, "save the tokenizer that the model was trained with")
    if tokenizer.pad_token_id != candidate.config.get("pad_token_id", 0):
        what = f"pads with {tokenizer.pad_token_id}, the model with {candidate.config.get('pad_token_id', 0)}"
        yield Problem("tokenizer.json", what, "save the tokenizer that the model was trained with")
    if tokenizer.model_max_length > positions:
        what = f"model_max_length is {tokenizer.model_max_length}, the model has {positions} positions"
        yield Problem("tokenizer_config.json", what, f"set tokenizer.model_max_length = {positions} and save it")
    if "token_type_ids" in tokenizer.model_input_names:
        remedy = 'set tokenizer.model_input_names = ["input_ids", "attention_mask"] and save it'
        yield Problem("tokenizer_config.json", "names token_type_ids, which the model does not take", remedy)


def check_labels(candidate: Candidate) -> Iterator[Problem]:
    """A classifier says what its classes mean."""
    if "Classification" not in candidate.architecture:
        return
    id2label, label2id = (candidate.config.get(name) or {} for name in ("id2label", "label2id"))
    remedy = "set config.id2label and config.label2id to the names of the classes, and save it"
    if not (
        isinstance(id2label, dict) and all(isinstance(name, str) and re.fullmatch(r"\d+", i) for i, name in id2label.items())
    ):
        yield Problem("config.json", "id2label must give a name, a text, to each index", remedy)
        return
    generic = sorted(str(name) for name in id2label.values() if re.fullmatch(r"LABEL_\d+|\d*", str(name)))
    if not id2label or generic:
        yield Problem("config.json", f"id2label does not say what the classes mean: {', '.join(generic) or 'none'}", remedy)
    if len(set(id2label.values())) != len(id2label):
        yield Problem("config.json", "id2label gives two classes the same name", remedy)
    if {name: int(index) for index, name in id2label.items()} != label2id:
        yield Problem("config.json", "label2id is not the inverse of id2label", remedy)


def check_paths(candidate: Candidate) -> Iterator[Problem]:
    """Nothing that is sent tells where something lay on the maintainer's machines or in their storage."""
    data = read_metadata(candidate.folder)
    published = {str(repo_id) for name in ("base_model", "datasets") for repo_id in as_list(data.get(name))}
    for name, file in candidate.files.items():
        try:
            text = "\n".join(piece.text for piece in pieces(name, file))
        except ValueError:  # which the check of secrets reports
            continue
        for match in sorted(set(find_private_paths(text, published))):
            yield Problem(name, f"holds the private path {match!r}", "replace it by a name or a relative path")


def check_secrets(candidate: Candidate) -> Iterator[Problem]:
    """No token, key or password in anything that is sent: names and values, text, the names of tensors and files."""
    token, remedy = get_token(), "remove it, and revoke it where it was issued"
    for name, file in candidate.files.items():
        try:
            content = pieces(name, file)
        except ValueError as error:
            yield Problem(name, f"cannot be searched for secrets: {reason(error)}", "save it as text in UTF-8")
            continue
        # The checksums of a kernel's files, which another check compares with them, look like keys.
        content = [piece for piece in content if not piece.where.startswith("digest.files.")]
        for where, kind in dict.fromkeys(secrets_in(content, token)):
            yield Problem(name, f"{where} holds {kind}", remedy)


def check_metadata(candidate: Candidate) -> Iterator[Problem]:
    """The card says under which licence, in which language, from which model and data, in words that the Hub knows."""
    data = read_metadata(candidate.folder)
    for name, example in {
        "license": "apache-2.0",
        "language": "en",
        "base_model": "organisation/name",
        "base_model_relation": "finetune",
        "datasets": "[organisation/name]",
    }.items():
        if data.get(name) in (None, "", []):
            yield Problem(CARD, f"does not give {name}", f"add `{name}: {example}` to the metadata of the folder's {CARD}")
    yield from check_known_metadata(candidate)


def check_known_metadata(candidate: Candidate) -> Iterator[Problem]:
    """What the card's metadata and the entries of results give is what the Hub takes, and every result a number."""
    for what, remedy in metadata_problems(read_metadata(candidate.folder), candidate.files):
        yield Problem(CARD, what, remedy)
    for name, file in candidate.files.items():
        if fnmatch.fnmatch(name, f"{ENTRIES}/*.yaml"):
            try:
                entries = yaml.safe_load(file.read_text(encoding="utf-8"))
            except (ValueError, yaml.YAMLError) as error:
                yield Problem(name, f"cannot be read as YAML: {reason(error)}", "publish it anew from eval_results.json")
                continue
            for what in result_problems(entries):
                yield Problem(name, what, "correct it in eval_results.json")


def check_card(candidate: Candidate) -> Iterator[Problem]:
    """The card is filled in, names limits, has whole tables, and takes every number from a file of results."""
    text = read_card(candidate.folder).text
    for match in PLACEHOLDER.finditer(text):
        yield Problem(CARD, f"has the unfilled field {match[0]!r}", f"fill it in in the folder's {CARD}")
    if not section(read_card(candidate.source).text, "Limits and bias"):
        remedy = f"add a section `## Limits and bias` to the folder's {CARD}: what the model was not made for and gets wrong"
        yield Problem(CARD, "does not say what the limits of this model are", remedy)
    for line in broken_table_lines(text):
        yield Problem(CARD, f"has a broken table line {line!r}", "remove `|` and line breaks from the results it shows")
    for number in untraced_numbers(candidate, text):
        remedy = f"put it into {' or '.join(RESULT_FILES[:2])}, or take it out of the folder's {CARD}"
        yield Problem(CARD, f"shows the number {number}, which is in no file of results", remedy)


def broken_table_lines(text: str) -> Iterator[str]:
    """Lines of a table that have another number of cells than its first line, or an empty cell."""
    columns = 0
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = 0
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        columns = columns or len(cells)
        if len(cells) != columns or not all(cells):
            yield line


def untraced_numbers(candidate: Candidate, text: str) -> Iterator[str]:
    """Numbers of the card's prose and tables that stand neither in a file of results nor in the template.

    Code, addresses and years are no results.
    """
    known = set(numbers_in(candidate.config))
    for name, file in candidate.files.items():
        if name in RESULT_FILES:
            known |= set(numbers_in(json.loads(file.read_text(encoding="utf-8"))))
    weights = [file for name, file in candidate.files.items() if name.endswith(".safetensors")]
    sizes = [file.stat().st_size for file in weights]
    parameters = [parameter_counts(file).total() for file in weights]
    if weights:
        known |= {size / 1e6 for size in (*sizes, sum(sizes))} | {float(n) for n in (*parameters, sum(parameters))}
    fixed = set(_NUMBER.findall(template_text()))
    for token in dict.fromkeys(_NUMBER.findall(_prose(text))):
        token = token.rstrip(",")
        if token not in fixed and not re.fullmatch(r"(19|20)\d\d", token) and not _is_known(token, known):
            yield token


def _prose(text: str) -> str:
    """The text without code, addresses, link targets and dates."""
    for pattern in (r"```.*?```", r"`[^`]*`", r"<https?://[^>]*>", r"\]\([^)]*\)", r"https?://\S+", r"\d{4}-\d\d-\d\d\S*"):
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    return text


def _is_known(token: str, known: set[float]) -> bool:
    """Whether `token` is one of the numbers rounded to its decimals; with decimals also as a percentage."""
    value, decimals = float(token.replace(",", "")), len(token.partition(".")[2].partition("e")[0])
    tolerance = 0.500001 * 10.0**-decimals
    if "e" in token or not decimals:
        return value in known
    if any(abs(number - value) <= tolerance for number in known):
        return True
    return value >= 1 and any(abs(100 * number - value) <= tolerance for number in known if number <= 1)


def numbers_in(content: Any) -> Iterator[float]:
    """Every number in a JSON value, those inside its strings and the names of its objects as well."""
    match content:
        case bool() | None:
            return
        case int() | float():
            yield float(content)
        case str():
            yield from (float(token.replace(",", "")) for token in _NUMBER.findall(content))
        case dict():
            for name, value in content.items():
                yield from numbers_in(name)
                yield from numbers_in(value)
        case list():
            for value in content:
                yield from numbers_in(value)


FILE_CHECKS: dict[str, Check] = {
    "files": check_files,
    "weights": check_weights,
    "auto_map": check_auto_map,
    "remote code": check_remote_code,
    KNOWN_SOURCES: check_known_sources,
    "choices": check_choices,
    "tokenizer": check_tokenizer,
    "labels": check_labels,
    "private paths": check_paths,
    "secrets": check_secrets,
    "card metadata": check_metadata,
    "card": check_card,
}
