"""Loads what of a checkpoint is data, whoever wrote it: no field of it chooses code, another repository or another file.

transformers follows many fields of a folder: attention kernels on the Hub, adapters of another repository, classes of
tokenizers, quantizers, other weight files. So it is given a view of the folder: the files of data alone and, in their JSON,
the fields that the classes know. What is unknown and harmless is left out. What would choose something is refused by name,
because without it the folder would be another model than its author means.
"""

import dataclasses
import fnmatch
import inspect
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import snapshot_download
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from ..modeling.attention_interface import ATTENTION_FORWARDS
from ..modeling.configuration_inhibidistilbert import MOST_LABELS, MOST_LAYERS, InhibiDistilBertConfig
from .errors import UserError, reason
from .files import is_regular, read_json

CONFIG, TOKENIZER, GENERATION, ADAPTER = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "adapter_config.json",
)
_SPECIAL_TOKENS, _ADDED_TOKENS = "special_tokens_map.json", "added_tokens.json"
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
)
_SMALL = (CONFIG, TOKENIZER, ADAPTER, _SPECIAL_TOKENS, _ADDED_TOKENS, *_VOCABULARIES)
# The second kind is read by torch's unpickler for tensors alone, and where there is none of the first.
_WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)
_SHARD = re.compile(r"(model-\d+-of-\d+\.safetensors|pytorch_model-\d+-of-\d+\.bin)")

# With a value, each makes transformers run, fetch or read something else than the files of data. `auto_map` has checks of
# its own: every checkpoint of this package has one, for those who trust it.
_CHOOSING = (
    "adapter_kwargs",
    "allow_all_kernels",
    "base_model_name_or_path",
    "code_revision",
    "compression_config",
    "configuration_files",
    "custom_generate",
    "custom_pipelines",
    "fast_tokenizer_files",
    "fusion_config",
    "gguf_file",
    "kernel_config",
    "quantization_config",
    "transformers_weights",
    "trust_remote_code",
    "use_kernels",
)
_ATTENTIONS = ("eager", "sdpa", "flex_attention")
_EXPERTS = ("eager", "batched_mm", "grouped_mm")
_DTYPES = ("float64", "float32", "float16", "bfloat16", "auto")
_LABELS = ("id2label", "label2id")
# What configurations take without declaring it; the second line is of the format of the inhibitor's authors.
_UNDECLARED = {
    *("model_type", "num_labels", "output_attentions", "per_layer_config", "rope_scaling"),
    *("activation_function", "center", "distance_metric", "signed_inhibitor"),
}
_TOKENIZER_FIELDS = {
    "errors",
    "model_input_names",
    "never_split",
    "padding_side",
    "truncation_side",
    "truncation_strategy",
}
_TOKEN_LISTS = ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
_TOKEN_FIELDS = {"__type", "content", "id", "lstrip", "normalized", "rstrip", "single_word", "special"}
# Parameters of tokenizers that are their vocabulary, or name a file of it.
_IS_VOCABULARY = re.compile(r"vocab|merges|tokenizer_object|.*_file")

_read_json = partial(read_json, finite=False)  # some configurations of transformers have Infinity


class ForeignFieldError(ValueError):
    """A folder chooses code or another source. The message names the file and the field; callers add the folder."""


def load_pretrained(kind: Any, source: str | os.PathLike, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """`kind.from_pretrained(source, **options)` on the data in `source`, a folder or a Hub id.

    kind: a class of configurations, tokenizers or models, such as an Auto class.
    trust_remote_code: leave everything to transformers, which follows whatever the source names.

    Raises:
        ForeignFieldError: the source names something that is not its data.
        UserError: something in it is no regular file, or not of the form or size of such data.
    """
    if trust_remote_code:
        if Path(source).is_dir():
            _weight_files(Path(source))
            for name in _SMALL:
                is_regular(Path(source, name))
        return kind.from_pretrained(source, trust_remote_code=True, **options)
    with _view(source, weights=not _is_small(kind)) as view:
        try:
            loaded = kind.from_pretrained(view, **{**options, "local_files_only": True, "trust_remote_code": False})
        except Exception as error:
            # Messages name the folder that the user gave.
            error.args = tuple(_renamed(arg, view, source) for arg in error.args)
            raise
    for part in loaded if isinstance(loaded, tuple) else (loaded,):
        _rename(part, view, source)
    return loaded


def read_config(source: str | os.PathLike) -> dict[str, Any]:
    """The content of `config.json` in a folder or a Hub repository, once it is known to choose nothing.

    Raises:
        OSError, UserError, ForeignFieldError: it cannot be had, or not be read, or it chooses something.
    """
    fields = _read_json(_fetch(source, weights=False) / CONFIG)
    _refuse(fields, CONFIG)
    return fields


def choices(folder: Path) -> Iterator[tuple[str, str]]:
    """The files in a folder that choose code or another source, each with what it does; the map of model classes apart."""
    readers: dict[str, Callable[..., Any]] = {
        CONFIG: plain_config,
        TOKENIZER: plain_tokenizer_config,
        _SPECIAL_TOKENS: _plain_tokens,
    }
    for name in (*readers, GENERATION):
        if (folder / name).is_file():
            try:
                fields = _read_json(folder / name)
                _refuse(fields, name)
                if name in readers:
                    readers[name](fields)
                if name != CONFIG and fields.get("auto_map"):
                    raise ForeignFieldError(f"{name}: auto_map names code, {fields['auto_map']!r}")
            except (ForeignFieldError, UserError) as error:
                yield name, reason(error).removeprefix(f"{name}: ")


def plain_config(fields: dict[str, Any], kind: type[PreTrainedConfig] | None = None) -> dict[str, Any]:
    """The fields of a configuration that its class knows, and numbers; they name nothing elsewhere.

    kind: the class of a part of a configuration; otherwise `model_type` names it.

    Raises:
        ForeignFieldError: a field that chooses something, or a model type that is not known here.
    """
    _refuse(fields, CONFIG)
    if kind is None or not issubclass(kind, PreTrainedConfig):
        kind = _config_class(fields.get("model_type"))
    _check_counts(fields)
    own = kind.model_type == InhibiDistilBertConfig.model_type
    values = {
        "attn_implementation": tuple(ATTENTION_FORWARDS) if own else _ATTENTIONS,
        "experts_implementation": _EXPERTS,
        "dtype": _DTYPES,
        "torch_dtype": _DTYPES,
    }
    known = {item.name for item in dataclasses.fields(kind)} | {*kind.attribute_map} | _UNDECLARED
    plain = {}
    for name, value in fields.items():
        allowed = values.get(name.removeprefix("_").removesuffix("_internal"))
        if name in _CHOOSING or name == "auto_map":
            continue  # empty, or for those who run the folder's code
        if allowed is not None:
            if value is not None and str(value).removeprefix("torch.") not in allowed:
                raise ForeignFieldError(f"{CONFIG}: {name} is {value!r}; without code from elsewhere: {', '.join(allowed)}")
            plain[name] = value
        elif name in kind.sub_configs and isinstance(value, dict):
            plain[name] = plain_config(value, kind.sub_configs[name])
        elif name == "tokenizer_class" and value is not None:
            plain[name] = _tokenizer_class(value, fields, CONFIG).__name__
        elif name in _LABELS or (name in known and _is_plain(value)):
            plain[name] = value
        elif name in known:
            raise ForeignFieldError(f"{CONFIG}: {name} is {value!r}, which names something elsewhere")
        elif _is_plain(value, text=False) and not hasattr(kind, name):
            plain[name] = value
    return plain


def _check_counts(fields: dict[str, Any]) -> None:
    """Raises `UserError` where nobody would see the end: transformers builds layers and names of labels one by one."""
    labels = fields.get("num_labels")
    if labels is not None and not (type(labels) is int and labels >= 1):
        raise UserError(f"{CONFIG}: num_labels must be an integer of at least 1, got {labels!r}.")
    for name, value in fields.items():
        most = MOST_LABELS if name == "num_labels" else MOST_LAYERS if "layer" in name else value
        if isinstance(value, int) and value > most:
            raise UserError(f"{CONFIG}: {name} must be at most {most}, got {value}.")


def plain_tokenizer_config(fields: dict[str, Any], model_type: Any = None) -> dict[str, Any]:
    """The fields of `tokenizer_config.json` that tokenizers know, and numbers.

    model_type: the model's; it names the tokenizer where no class is named.

    Raises:
        ForeignFieldError: a field that chooses something.
    """
    _refuse(fields, TOKENIZER)
    name = fields.get("tokenizer_class")
    kind = _tokenizer_class(name or TOKENIZER_MAPPING_NAMES.get(model_type) or "TokenizersBackend", fields, TOKENIZER)
    parameters = {each for each in inspect.signature(kind).parameters if not _IS_VOCABULARY.fullmatch(each)}
    plain = _plain_tokens(fields, TOKENIZER)
    for field, value in fields.items():
        if field in _TOKENIZER_FIELDS or field in parameters:
            if not _is_plain(value) and field not in plain:
                raise ForeignFieldError(f"{TOKENIZER}: {field} is {value!r}, which names something elsewhere")
            plain[field] = value
        elif _is_plain(value, text=False) and not _IS_VOCABULARY.fullmatch(field):
            plain[field] = value
    for field in (*_CHOOSING, "auto_map", "tokenizer_class"):
        plain.pop(field, None)
    return plain | ({"tokenizer_class": kind.__name__} if name else {})


def _plain_tokens(fields: dict[str, Any], file: str = _SPECIAL_TOKENS) -> dict[str, Any]:
    """The fields that are tokens, or lists of them or objects by id or name."""
    plain = {}
    for name, value in fields.items():
        if name.endswith("_token") or name in _TOKEN_LISTS:
            tokens = [value] if name not in _TOKEN_LISTS else value.values() if isinstance(value, dict) else value or []
            if not isinstance(tokens, Iterable) or not all(map(_is_token, tokens)):
                raise ForeignFieldError(f"{file}: {name} must be tokens, got {value!r}")
            plain[name] = value
    return plain


def _is_token(value: Any) -> bool:
    if isinstance(value, dict):
        plain = all(isinstance(part, str | bool | int | None) for part in value.values())
        return plain and value.keys() <= _TOKEN_FIELDS
    return value is None or isinstance(value, str)


def _is_plain(value: Any, text: bool = True) -> bool:
    """Numbers, with `text` words as well, and lists and objects of them. What has a slash may be a path or a repository."""
    if isinstance(value, list):
        return all(_is_plain(part, text) for part in value)
    if isinstance(value, dict):
        return all(_is_plain(part, text) for part in value.values())
    if isinstance(value, str):
        return text and not re.search(r"[/\\|]", value)
    return True


def _refuse(fields: dict[str, Any], file: str) -> None:
    """Raises `ForeignFieldError` for a field that chooses something, whatever class reads it."""
    for name in _CHOOSING:
        if fields.get(name):
            raise ForeignFieldError(f"{file}: {name} is {fields[name]!r}, which is more than data; take it out")
    for reference in _strings(fields.get("auto_map")):
        if "--" in reference:
            raise ForeignFieldError(f"{file}: auto_map names code in another repository, {reference!r}")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _config_class(model_type: Any) -> type[PreTrainedConfig]:
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ForeignFieldError(
            f"{CONFIG}: model_type {model_type!r} is not one that transformers or this package has, and code that comes "
            "with a checkpoint runs only with --trust-remote-code, where a command has it"
        )
    return CONFIG_MAPPING[model_type]


def _tokenizer_class(name: Any, fields: dict[str, Any], file: str) -> type[PreTrainedTokenizerBase]:
    """transformers' tokenizer of that name. One it has no longer means what `tokenizer.json` says, as there."""
    found = None
    if isinstance(name, str):
        found = getattr(transformers, name, None) or getattr(transformers, name.removesuffix("Fast"), None)
    auto_map = fields.get("auto_map")
    remote = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    if found is None and isinstance(name, str) and not remote:
        return transformers.TokenizersBackend
    if not inspect.isclass(found) or not issubclass(found, PreTrainedTokenizerBase):
        raise ForeignFieldError(f"{file}: tokenizer_class is {name!r}, which is none of transformers' tokenizers")
    return found


def _is_small(kind: Any) -> bool:
    """Whether the class reads no weights."""
    return kind in (AutoConfig, AutoTokenizer) or issubclass(kind, PreTrainedConfig | PreTrainedTokenizerBase)


def _fetch(source: str | os.PathLike, weights: bool) -> Path:
    """The folder itself, or the files of data of a Hub repository in the cache."""
    if Path(source).is_dir():
        return Path(source)
    folder = Path(snapshot_download(str(source), allow_patterns=[*_SMALL, *(_WEIGHTS[0] if weights else ())]))
    if weights and not _weight_files(folder):
        folder = Path(snapshot_download(str(source), allow_patterns=[*_SMALL, *_WEIGHTS[1]]))
    return folder


def _weight_files(folder: Path) -> list[Path]:
    """The files of weights of the best kind that is there."""
    names = sorted(os.listdir(folder))  # also of links that lead nowhere, which `glob` passes over
    for patterns in _WEIGHTS:
        found = [folder / name for pattern in patterns for name in fnmatch.filter(names, pattern)]
        if files := list(filter(is_regular, found)):
            return files
    return []


@contextmanager
def _view(source: str | os.PathLike, weights: bool) -> Iterator[Path]:
    """A temporary folder with the data in `source` and nothing else; large files are linked."""
    folder = _fetch(source, weights)
    with tempfile.TemporaryDirectory(prefix="inhibidistilbert-", ignore_cleanup_errors=True) as temporary:
        view = Path(temporary, "data")
        view.mkdir()
        model_type = None
        if is_regular(folder / CONFIG):
            config = plain_config(_read_json(folder / CONFIG))
            model_type = config.get("model_type")
            _write(view / CONFIG, config)
        if is_regular(folder / TOKENIZER):
            _write(view / TOKENIZER, plain_tokenizer_config(_read_json(folder / TOKENIZER), model_type))
        if is_regular(folder / _SPECIAL_TOKENS):
            _write(view / _SPECIAL_TOKENS, _plain_tokens(_read_json(folder / _SPECIAL_TOKENS)))
        if is_regular(folder / _ADDED_TOKENS):
            added = _read_json(folder / _ADDED_TOKENS)
            _write(view / _ADDED_TOKENS, {token: index for token, index in added.items() if isinstance(index, int)})
        for name in _VOCABULARIES:
            if is_regular(folder / name):
                _link(folder / name, view / name)
        if weights:
            if (folder / ADAPTER).exists():
                raise ForeignFieldError(f"{ADAPTER}: this is an adapter of another model; merge the two and save that")
            _link_weights(folder, view)
        yield view


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def _link_weights(folder: Path, view: Path) -> None:
    for file in _weight_files(folder):
        if not file.name.endswith(".index.json"):
            _link(file, view / file.name)
            continue
        for shard in sorted(set(weight_map(file).values())):
            if not is_regular(folder / shard):
                raise UserError(f"{file.name} names {shard!r}, which is missing.")
        _write(view / file.name, {"metadata": {}, "weight_map": weight_map(file)})


def weight_map(index: Path) -> dict[str, str]:
    """By the name of each tensor that of its file of weights, which lies beside the index.

    Raises:
        UserError, ForeignFieldError: it is not of this form, or names something elsewhere.
    """
    shards = _read_json(index).get("weight_map")
    if not shards or not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise UserError(f"{index.name}: weight_map must give each tensor the name of a file of weights, got {shards!r}.")
    for shard in shards.values():
        if not _SHARD.fullmatch(shard):
            raise ForeignFieldError(f"{index.name}: {shard!r} is not the name of a file of weights beside it")
    return shards


def _link(file: Path, target: Path) -> None:
    """As a link, or where the system has none as a copy."""
    try:
        target.symlink_to(file.resolve())
    except OSError:
        shutil.copyfile(file, target)


def _renamed(value: Any, view: Path, source: str | os.PathLike) -> Any:
    return value.replace(str(view), str(source)) if isinstance(value, str) else value


def _rename(loaded: Any, view: Path, source: str | os.PathLike) -> None:
    """Have what was loaded name its source: transformers keeps the path, and tokenizers copy files from there."""
    for owner in (loaded, getattr(loaded, "config", None)):
        for fields in (getattr(owner, "__dict__", {}), getattr(owner, "init_kwargs", {})):
            for name, value in fields.items():
                if isinstance(value, str) and str(view) in value:
                    fields[name] = _renamed(value, view, source)
