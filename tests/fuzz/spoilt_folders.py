"""Checkpoint folders with one thing wrong in each, and the command that reads it."""

import dataclasses
import json
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizer

from inhibidistilbert import InhibiDistilBertConfig, InhibiDistilBertForSequenceClassification
from tests.helpers.tiny_sentiment import VOCABULARY, tiny_config

from .judging import FREE, KEPT, REFUSED, Trial
from .running import Case

TEXTS = ("the film is good", "a dull plot and a bad film", "very funny")


class Raw(str):
    """A text that is written into JSON as it is."""


DEEP = 100_000
VALUES: tuple[Any, ...] = (
    *("2", "", "word", "../../etc/passwd", "/dev/zero", "\ud800", "x" * 300_000, "1e9", "NaN"),
    *(None, True, False, 0, 1, -1, 2, 0.5, 1e9, -1e9, 10**9, -(10**9), 2**31, 2**63, 10**400, 1e308),
    *(float("nan"), float("inf"), -float("inf")),
    *([], [1], ["a"], [[]], [None], [1e9] * 3, {}, {"0": "a"}, {"a": {}}, {"content": "x"}, {"": None}),
    *(
        Raw("[" * DEEP + "]" * DEEP),
        Raw('{"a":' * 900 + "1" + "}" * 900),
        Raw("1" * 5000),
        Raw("1e999"),
        Raw("[" * 60 + "]" * 60),
    ),
)
CONFIG_FIELDS = sorted(
    {field.name for field in dataclasses.fields(InhibiDistilBertConfig)}
    | {*InhibiDistilBertConfig.attribute_map}
    | {*("model_type", "num_labels", "torch_dtype", "attn_implementation", "_attn_implementation", "_name_or_path")}
    | {*("pruned_heads", "per_layer_config", "rope_scaling", "transformers_version", "auto_map", "tokenizer_class")}
    | {*("quantization_config", "is_decoder", "output_attentions", "layer_types", "use_cache", "base_model_name_or_path")}
    | {*("distance_metric", "signed_inhibitor", "activation_function", "unknown_field", "sep_token_id", "tie_weights_")}
)
TOKENIZER_FIELDS = (
    *("tokenizer_class", "model_max_length", "do_lower_case", "strip_accents", "tokenize_chinese_chars", "padding_side"),
    *(
        "truncation_side",
        "model_input_names",
        "added_tokens_decoder",
        "extra_special_tokens",
        "clean_up_tokenization_spaces",
    ),
    *(
        "additional_special_tokens",
        "auto_map",
        "vocab_file",
        "tokenizer_file",
        "chat_template",
        "processor_class",
        "backend",
    ),
    *(
        "is_local",
        "name_or_path",
        "special_tokens_map_file",
        "never_split",
        "unknown_field",
        "add_prefix_space",
        "split_special_tokens",
    ),
    *("cls_token", "sep_token", "pad_token", "unk_token", "mask_token", "bos_token", "errors", "max_len", "legacy", "vocab"),
)
FILES = (
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"),
    *("added_tokens.json", "generation_config.json", "README.md", "eval_results.json", "adapter_config.json", "merges.txt"),
    *("model.safetensors.index.json", "model-00001-of-00002.safetensors", "pytorch_model.bin", "chat_template.jinja"),
    *("distillation.json", "pytorch_model.bin.index.json", "preprocessor_config.json", "vocab.json", "LICENSE", "a.py"),
)


@dataclass(frozen=True)
class Spoiling:
    """What was done to a folder, and what that means for the result of a command."""

    what: str
    meaning: str = KEPT


def write_originals(folder: Path) -> None:
    """The folders that are spoilt: a classifier, `own`, and a DistilBERT to convert, `source`; and labelled texts."""
    torch.manual_seed(5)
    config = tiny_config()
    InhibiDistilBertForSequenceClassification(config).save_pretrained(folder / "own")
    fields = {name: getattr(config, name) for name in ("vocab_size", "max_position_embeddings", "dim", "hidden_dim")}
    source = DistilBertConfig(n_layers=2, n_heads=2, id2label=config.id2label, label2id=config.label2id, **fields)
    DistilBertForSequenceClassification(source).save_pretrained(folder / "source")
    for name in ("own", "source"):
        tokenizer = DistilBertTokenizer(vocab=VOCABULARY, model_max_length=config.max_position_embeddings)
        tokenizer.save_pretrained(folder / name)
        (folder / name / "README.md").write_text("---\nlanguage: en\n---\n\n# Tiny\n")
    rows = [f"{text},{place % 2}" for place, text in enumerate(TEXTS * 2)]
    (folder / "data.csv").write_text("\n".join(["text,label", *rows, ""]))
    (folder / "texts.txt").write_text("\n".join([*TEXTS, ""]))
    pairs = [{"text": text, "other": TEXTS[0], "label": 1, "score": 0.5} for text in TEXTS]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")


def copy(original: Path, folder: Path) -> None:
    """A copy whose files are the original's until they are replaced."""
    folder.mkdir()
    for file in original.iterdir():
        os.link(file, folder / file.name)


def cases(model: Path, data: Path) -> dict[str, Case]:
    """The commands that read a folder, by name; each prints JSON."""
    name = str(model)
    return {
        "predict": Case(("predict", "--json", "--all-scores", "--model", name, *TEXTS)),
        "evaluate": Case(
            ("evaluate", name, "--task", "classification", "--data", str(data), "--json", "--output", "results")
        ),
        "publish": Case(("publish", name, "--repo-id", "someone/tiny", "--dry-run", "--json")),
        "quantize": Case(("quantize", name, "quantized", "--json")),
        "convert": Case(("convert", name, "converted", "--json")),
    }


def spoil(random: Random, folder: Path) -> Spoiling:
    """Make one thing wrong in the folder, or now and then two."""
    kinds: tuple[tuple[Callable[[Random, Path], Spoiling], int], ...] = (
        (config_value, 30),
        (labels, 8),
        (kind_of_file, 18),
        (text_of_file, 10),
        (weights, 12),
        (shards, 8),
        (tokenizer_value, 10),
        (tokenizer_field, 8),
        (special_tokens, 3),
    )
    ways, weights_ = zip(*kinds, strict=True)
    return random.choices(ways, weights_)[0](random, folder)


def replace(file: Path, content: bytes | str) -> None:
    """Not in place: the file may be the original's."""
    file.unlink(missing_ok=True)
    file.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)


def as_json(content: Any) -> str:
    raw: list[str] = []

    def marked(value: Any) -> Any:
        if isinstance(value, Raw):
            raw.append(value)
            return f"@raw{len(raw) - 1}@"
        if isinstance(value, dict):
            return {name: marked(part) for name, part in value.items()}
        return [*map(marked, value)] if isinstance(value, list) else value

    text = json.dumps(marked(content))
    for place, value in enumerate(raw):
        text = text.replace(f'"@raw{place}@"', value)
    return text


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:30]}…({len(text)})"


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_bytes())
    change(content)
    replace(file, as_json(content))


def config_value(random: Random, folder: Path) -> Spoiling:
    field, value = random.choice(CONFIG_FIELDS), random.choice(VALUES)
    if random.random() < 0.15:
        field, value = random.choice(
            [("num_labels", "2"), ("n_layers", 10**9), ("n_layers", 1e9), ("num_hidden_layers", 10**9)]
        )
    edit(folder / "config.json", lambda config: config.update({field: value}))
    # Of the right type and within the range, these say another model.
    free = (
        isinstance(value, bool)
        or value is None
        or (field in ("n_heads", "num_attention_heads", "radii") and value in (1, 2))
    )
    return Spoiling(f"config.json: {field} = {shown(value)}", FREE if free else KEPT)


def labels(random: Random, folder: Path) -> Spoiling:
    def changes() -> dict[str, Any]:
        maps = [
            *(
                {},
                {"0": "A"},
                {"0": "A", "1": "A"},
                {"0": "A", "2": "B"},
                {"1": "A", "2": "B"},
                {"0": "A", "1": "B", "2": "C"},
            ),
            *({"a": "A", "b": "B"}, {"0": None, "1": "B"}, {"0": 0, "1": 1}, {"0": [], "1": {}}, {"-1": "A", "0": "B"}),
            *({"0": "", "1": ""}, {"00": "A", "0": "B", "1": "C"}, {"0": "A\nB", "1": "\x1b[31mC"}, ["A", "B"], "AB", 2),
            *({"0": "x" * 100_000, "1": "B"}, {"٠": "A", "1": "B"}, {" 0": "A", "1_0": "B"}, {"0.0": "A", "1": "B"}),
            *({str(i): f"L{i}" for i in range(5000)}, {"0": "\ud800", "1": "B"}, {"0": True, "1": False}, None),
        ]
        inverse = [
            *(
                {},
                {"A": 0},
                {"A": 1, "B": 0},
                {"A": 0, "B": 0},
                {"A": "x"},
                {"NEGATIVE": 1, "POSITIVE": 0},
                [],
                None,
                "A",
                1,
            ),
            *({"A": None}, {"A": 10**30}, {"A": 0.5}, {"NEGATIVE": "0", "POSITIVE": "1"}, {"A": [0]}, {"A": float("nan")}),
        ]
        numbers = [2, "2", 3, 1, 0, -1, None, [], 2.0, 10**9, 1e9, True, {}]
        problems = ["regression", "multi_label_classification", "single_label_classification", "other", 1, [], None, {}]
        found: dict[str, Any] = {}
        for name, values in (("id2label", maps), ("label2id", inverse), ("num_labels", numbers), ("problem_type", problems)):
            if random.random() < 0.45:
                found[name] = random.choice(values)
        return found or {"num_labels": random.choice(numbers)}

    changed = changes()
    edit(folder / "config.json", lambda config: config.update(changed))
    return Spoiling(f"config.json: {shown(changed)}", FREE)


def kind_of_file(random: Random, folder: Path) -> Spoiling:
    name, kind = random.choice(FILES), random.choice(sorted(KINDS))
    file = folder / name
    content = file.read_bytes() if file.exists() else b"{}"
    file.unlink(missing_ok=True)
    KINDS[kind](file, content)
    return Spoiling(f"{name}: {kind}", FREE if kind in ("missing", "empty") else KEPT)


def _nothing(file: Path, content: bytes) -> None: ...


def _unreadable(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    file.chmod(0)


def _socket(file: Path, content: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = os.open(".", os.O_RDONLY)
        os.chdir(file.parent)
        end.bind(file.name)
        os.fchdir(here)
        os.close(here)


def _elsewhere(file: Path, content: bytes) -> None:
    (file.parent.parent / f"other-{file.name}").write_bytes(content)
    file.symlink_to(f"../other-{file.name}")


KINDS: dict[str, Callable[[Path, bytes], object]] = {
    "missing": _nothing,
    "empty": lambda file, content: file.touch(),
    "fifo": lambda file, content: os.mkfifo(file),
    "folder": lambda file, content: file.mkdir(),
    "socket": _socket,
    "unreadable": _unreadable,
    "link to nothing": lambda file, content: file.symlink_to("gone"),
    "link to itself": lambda file, content: file.symlink_to(file.name),
    "link to its folder": lambda file, content: file.symlink_to("."),
    "link elsewhere": _elsewhere,
    **{
        f"link to {name}": lambda file, content, name=name: file.symlink_to(name)
        for name in (
            "/dev/zero",
            "/dev/null",
            "/dev/stdin",
            "/dev/full",
            "/dev/urandom",
            "/dev/fd/0",
            "/proc/self/mem",
            "/dev/tty",
        )
    },
}


def text_of_file(random: Random, folder: Path) -> Spoiling:
    names = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "special_tokens_map.json",
        "added_tokens.json",
    ]
    file = folder / random.choice([*names, "vocab.txt", "eval_results.json", "generation_config.json", "distillation.json"])
    content = file.read_bytes() if file.exists() else b'{"a": 1}'
    way, meaning = (
        random.choice(
            ["truncated", "garbled", "BOM", "UTF-16", "UTF-32", "Latin-1", "twice", "long", "list", "number", "null", "text"]
            + ["deep", "deep object", "NaN", "comma", "trailing", "NUL", "blank", "digits", "double", "many"]
        ),
        KEPT,
    )
    where = random.randrange(len(content))
    text = content.decode()
    if way == "truncated":
        content = content[:where]
    elif way == "garbled":
        content = content[:where] + random.randbytes(random.randint(1, 30)) + content[where + 3 :]
        meaning = FREE
    elif way in ("BOM", "UTF-16", "UTF-32"):
        content = text.encode({"BOM": "utf-8-sig"}.get(way, way))
    elif way == "Latin-1":
        content = content[:-2] + "ä".encode("latin-1") + content[-2:]
    elif way == "twice":
        content = (
            content.rstrip()[:-1] + b', "model_type": "bert", "id2label": {"0": "POSITIVE", "1": "NEGATIVE"}, "version": 3}'
        )
        meaning = FREE
    elif way == "long":
        content = content + b" " * 30_000_000
    elif way == "many":
        content = b'{"a": [' + b"1," * 3_000_000 + b"1]}"
    else:
        content = {
            "list": b"[1, 2]",
            "number": b"3",
            "null": b"null",
            "text": b'"a"',
            "deep": b"[" * DEEP + b"]" * DEEP,
            "deep object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
            "NaN": b'{"a": NaN, "b": -Infinity}',
            "comma": content.rstrip()[:-1] + b",}",
            "trailing": content + b"}",
            "NUL": content[:where] + b"\0" + content[where:],
            "blank": b" \n",
            "digits": b'{"a": ' + b"7" * 10_000 + b"}",
            "double": content + content,
        }[way]
        meaning = FREE if way == "NUL" else KEPT
    replace(file, content)
    return Spoiling(
        f"{file.name}: {way}",
        FREE if file.name in ("vocab.txt", "README.md", "added_tokens.json", "special_tokens_map.json") else meaning,
    )


def tensors(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a file of weights."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_tensors(file: Path, header: Any, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else as_json(header).encode()
    replace(file, struct.pack("<Q", (len(text) if length is None else length) % 2**64) + text + data)


def weights(random: Random, folder: Path) -> Spoiling:
    file = folder / "model.safetensors"
    header, data = tensors(file)
    names = sorted(name for name in header if name != "__metadata__")
    name = random.choice(names)
    way = random.choice(
        ["truncated", "garbled header", "length", "offsets", "shape", "dtype", "NaN", "renamed", "lost", "surplus", "empty"]
        + ["pickle", "metadata", "header value", "entry", "deep", "text", "swapped", "twice", "huge values", "longer", "zip"]
    )
    meaning = REFUSED
    begin, end = header[name]["data_offsets"]
    if way == "truncated":
        content = file.read_bytes()
        replace(file, content[: random.randrange(len(content))])
    elif way == "garbled header":
        text = bytearray(as_json(header).encode())
        for _ in range(random.randint(1, 8)):
            text[random.randrange(len(text))] = random.randrange(256)
        write_tensors(file, bytes(text), data)
        meaning = FREE
    elif way == "length":
        length = random.choice([0, 1, 2**63, 2**64 - 1, len(data), 10**9, -1, 100, len(as_json(header)) + 1])
        write_tensors(file, header, data, length)
    elif way == "offsets":
        header[name]["data_offsets"] = random.choice(
            [
                [0, 4],
                [end, begin],
                [begin + 4, end + 4],
                [-1, 3],
                [begin, 2**63],
                [begin, 2**64],
                ["0", "4"],
                [],
                None,
                [begin, end + 4],
            ]
        )
        write_tensors(file, header, data)
    elif way == "shape":
        shapes = [[10**9], [0], [], [1] * 100, [2**32, 2**32, 2**32], [-1, -4], "a", None, [1.5], [(end - begin) // 4, 1, 1]]
        header[name]["shape"] = random.choice(shapes)
        write_tensors(file, header, data)
    elif way == "dtype":
        header[name]["dtype"] = random.choice(
            ["I32", "BF16", "F64", "U8", "BOOL", "C64", "F8_E4M3", "Q", 1, None, [], "f32", "I8"]
        )
        write_tensors(file, header, data)
    elif way == "NaN":
        value = struct.pack("<f", random.choice([float("nan"), float("inf"), -float("inf")]))
        # Not of a token that no text has, or a place that none reaches.
        write_tensors(file, header, data[:begin] + value * ((end - begin) // 4) + data[end:])
        meaning = FREE if "position" in name else REFUSED
    elif way == "huge values":
        write_tensors(file, header, data[:begin] + struct.pack("<f", 3e38) * ((end - begin) // 4) + data[end:])
        meaning = FREE
    elif way == "renamed":
        header[random.choice(["other", name + "x", f"distilbert.{name}", f"x.{name}", "", "\ud800", name.upper()])] = (
            header.pop(name)
        )
        write_tensors(file, header, data)
    elif way == "lost":
        kept = {each: fields for each, fields in header.items() if each != name}
        for each in names:
            if each != name and kept[each]["data_offsets"][0] >= end:
                kept[each]["data_offsets"] = [offset - end + begin for offset in kept[each]["data_offsets"]]
        write_tensors(file, kept, data[:begin] + data[end:])
    elif way == "surplus":
        other = random.choice(
            [
                "distilbert.transformer.layer.2.attention.alpha",
                "distilbert.x",
                "y",
                "classifier.z",
                "distilbert.embeddings.q",
            ]
        )
        header[other] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
        write_tensors(file, header, data + b"\0\0\0\0")
        meaning = KEPT
    elif way == "empty":
        write_tensors(file, {}, b"")
    elif way == "pickle":
        torch.save({"a": torch.zeros(2)}, folder / "pickled")
        replace(file, (folder / "pickled").read_bytes())
        (folder / "pickled").unlink()
    elif way == "metadata":
        header["__metadata__"] = random.choice(
            [{}, {"format": "tf"}, {"format": 1}, "pt", [], None, {"format": "pt", "a": {}}]
        )
        write_tensors(file, header, data)
        meaning = KEPT
    elif way == "header value":
        write_tensors(
            file, random.choice([b"[]", b"1", b"null", b"{", b"", b"{}{}", b'{"a": 1}', b'{"a": {}}', b"\xff\xfe"]), data
        )
    elif way == "entry":
        header[name] = random.choice(
            [None, 1, "a", [], {}, {"dtype": "F32"}, {"dtype": "F32", "shape": [], "data_offsets": [0, 0]}]
        )
        write_tensors(file, header, data)
    elif way == "deep":
        write_tensors(file, b'{"a":' * DEEP + b"1" + b"}" * DEEP, data)
    elif way == "text":
        replace(file, "<!DOCTYPE html><html><body>404: Not Found</body></html>\n" * 20)
    elif way == "zip":
        replace(file, b"PK\x03\x04" + random.randbytes(500))
    elif way == "swapped":
        alike = [each for each in names if each != name and header[each]["shape"] == header[name]["shape"]]
        if alike:
            other = random.choice(alike)
            header[name], header[other] = header[other], header[name]
        write_tensors(file, header, data)
        meaning = FREE
    elif way == "twice":
        text = as_json(header).rstrip("}").rstrip() + f'}}, "{name}": {json.dumps(header[names[0]])}}}'
        write_tensors(file, text.encode(), data)
        meaning = KEPT
    elif way == "longer":
        write_tensors(file, header, data + random.randbytes(8))
    return Spoiling(f"model.safetensors: {way} ({name})", meaning)


def shards(random: Random, folder: Path) -> Spoiling:
    file, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    header, data = tensors(file)
    shard = random.choice(["model-00001-of-00001.safetensors", "model-00001-of-00002.safetensors"])
    names = [name for name in header if name != "__metadata__"]
    content: dict[str, Any] = {"metadata": {"total_size": len(data)}, "weight_map": dict.fromkeys(names, shard)}
    way = random.choice(
        [
            "valid",
            "name",
            "name",
            "some names",
            "map",
            "kind",
            "kind",
            "absent",
            "field",
            "one lost",
            "size",
            "beside",
            "not JSON",
        ]
    )
    meaning = KEPT
    if way != "beside":
        file.rename(folder / shard)
    if way == "name":
        name = random.choice(
            [
                "/dev/zero",
                "/dev/stdin",
                "../own/model.safetensors",
                "model.safetensors.index.json",
                ".",
                "",
                "..",
                "gone.safetensors",
                "fifo",
            ]
            + [
                "config.json",
                "a" * 300,
                "\0",
                "\ud800",
                f"./{shard}",
                f"sub/../{shard}",
                "/dev/fd/0",
                "~/x",
                "file:///etc/passwd",
                "model.safetensors",
            ]
        )
        content["weight_map"] = dict.fromkeys(names, name)
        os.mkfifo(folder / "fifo")
    elif way == "some names":
        for name in random.sample(names, 3):
            content["weight_map"][name] = random.choice(
                ["/dev/zero", "../x", None, 1, [], {}, "model-00009-of-00009.safetensors"]
            )
    elif way == "map":
        content["weight_map"] = random.choice(VALUES)
    elif way == "field":
        content = random.choice(
            [{}, {"metadata": {}}, {"weight_map": {}}, {"a": 1}, {"metadata": None, "weight_map": {"a": shard}}]
        )
    elif way == "kind":
        kind = random.choice(sorted(KINDS))
        weights_ = (folder / shard).read_bytes()
        (folder / shard).unlink()
        KINDS[kind](folder / shard, weights_)
        way = f"shard is {kind}"
    elif way == "absent":
        (folder / shard).rename(folder / "gone")
    elif way == "one lost":
        del content["weight_map"][random.choice(names)]
    elif way == "size":
        content["metadata"] = {"total_size": random.choice(VALUES)}
    replace(index, "{" if way == "not JSON" else as_json(content))
    return Spoiling(f"shards: {way} {shown(content)[:80]}", meaning)


def tokenizer_value(random: Random, folder: Path) -> Spoiling:
    """A value anywhere in tokenizer.json."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_bytes())
    where, meaning = "", FREE
    way = random.choice(["value", "value", "lost", "no vocabulary", "ids", "added", "post", "model", "version"])
    if way in ("value", "lost"):
        part: Any = content
        while True:
            key = random.choice(sorted(part) if isinstance(part, dict) else range(len(part)))
            where += f".{key}"
            if not (isinstance(part[key], dict | list) and part[key] and random.random() < 0.75):
                break
            part = part[key]
        if way == "lost":
            del part[key]
        else:
            part[key] = random.choice(VALUES)
            where += f" = {shown(part[key])}"
    elif way == "no vocabulary":
        content["model"]["vocab"] = random.choice([{}, [], None, {"[PAD]": 0}, {"a": "b"}, ["a", "b"]])
        meaning = REFUSED
    elif way == "ids":
        offset = random.choice([10**6, 2**32, -1, -100, 0.5, 2**64])
        content["model"]["vocab"] = {token: place + offset for token, place in content["model"]["vocab"].items()}
        where = str(offset)
        meaning = REFUSED
    elif way == "added":
        content["added_tokens"] = random.choice(
            [
                *([], None, {}, [1], [{}], [{"id": 10**6, "content": "film", "special": False}]),
                [
                    {
                        "id": 99,
                        "content": "good",
                        "special": True,
                        "single_word": False,
                        "lstrip": False,
                        "rstrip": False,
                        "normalized": False,
                    }
                ],
                [
                    {
                        "id": -1,
                        "content": "",
                        "special": True,
                        "single_word": False,
                        "lstrip": False,
                        "rstrip": False,
                        "normalized": False,
                    }
                ],
            ]
        )
    elif way == "post":
        content["post_processor"] = random.choice(
            [
                None,
                {},
                {"type": "BertProcessing", "sep": ["[SEP]", 10**6], "cls": ["[CLS]", 10**6]},
                {"type": "Sequence", "processors": []},
            ]
        )
    elif way == "model":
        content["model"] = random.choice(
            [
                None,
                {},
                {"type": "BPE", "vocab": {"a": 0}, "merges": []},
                {"type": "Unigram", "vocab": [["a", 0.0]]},
                {"type": "WordLevel"},
            ]
            + [
                {"type": "Unigram", "vocab": [], "unk_id": 5},
                {"type": "x"},
                {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "b"},
            ]
        )
    elif way == "version":
        content["version"] = random.choice(["2.0", 1, None, "", [], "1.0.0"])
    replace(file, as_json(content))
    return Spoiling(f"tokenizer.json: {way} {where}", meaning)


def tokenizer_field(random: Random, folder: Path) -> Spoiling:
    field, value = random.choice(TOKENIZER_FIELDS), random.choice(VALUES)
    name = random.choice(["tokenizer_config.json"] * 4 + ["special_tokens_map.json", "added_tokens.json"])
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    edit(folder / name, lambda fields: fields.update({field: value}))
    return Spoiling(f"{name}: {field} = {shown(value)}", FREE)


def special_tokens(random: Random, folder: Path) -> Spoiling:
    """Without some special tokens, or with others."""
    token = random.choice(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    field = {"[PAD]": "pad_token", "[UNK]": "unk_token", "[CLS]": "cls_token", "[SEP]": "sep_token", "[MASK]": "mask_token"}[
        token
    ]

    def drop(content: dict[str, Any]) -> None:
        content["model"]["vocab"].pop(token, None)
        content["added_tokens"] = [each for each in content["added_tokens"] if each["content"] != token]

    edit(folder / "tokenizer.json", drop)
    edit(folder / "tokenizer_config.json", lambda fields: fields.update({field: random.choice([None, token, "gone", ""])}))
    return Spoiling(f"{token} is gone", FREE)


def made(seed: int, place: int, originals: Path, folder: Path) -> Trial:
    """The spoilt folder at a place of the list of this seed, below `folder`, and the command that reads it."""
    random = Random(f"folder {seed} {place}")  # so that each can be made alone
    command = random.choices(("predict", "evaluate", "publish", "quantize", "convert"), (35, 20, 20, 12, 13))[0]
    spoilt = spoil(random, unspoilt(command, originals, folder))
    return Trial(command, cases(Path("model"), originals / "data.csv")[command], spoilt.what, spoilt.meaning)


def unspoilt(command: str, originals: Path, folder: Path) -> Path:
    """The folder that a command reads."""
    copy(originals / ("source" if command == "convert" else "own"), folder / "model")
    return folder / "model"
