"""Checkpoint folders with one thing wrong in each, and the commands that read them."""

import dataclasses
import json
import os
import socket
import struct
from collections.abc import Callable
from functools import partial
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
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DEEP = 100_000
NAN, INFINITY = float("nan"), float("inf")

Spoilt = tuple[str, str]  # what was done, and what it means for the result


class Raw(str):
    """Text that is written into JSON as it is."""


VALUES: tuple[Any, ...] = (
    *("2", "", "word", "../../etc/passwd", "/dev/zero", "\ud800", "x" * 300_000, "1e9", "NaN", None, True, False),
    *(0, 1, -1, 2, 0.5, 1e9, -1e9, 10**9, -(10**9), 2**31, 2**63, 10**400, 1e308, NAN, INFINITY, -INFINITY),
    *([], [1], ["a"], [[]], [None], [1e9] * 3, {}, {"0": "a"}, {"a": {}}, {"content": "x"}, {"": None}),
    *(Raw("[" * DEEP + "]" * DEEP), Raw('{"a":' * 900 + "1" + "}" * 900), Raw("1" * 5000), Raw("1e999")),
    Raw("[" * 60 + "]" * 60),
)
OTHER_CONFIG_FIELDS = """
    model_type num_labels torch_dtype attn_implementation _attn_implementation _name_or_path pruned_heads
    per_layer_config rope_scaling transformers_version auto_map tokenizer_class quantization_config is_decoder
    output_attentions layer_types use_cache base_model_name_or_path distance_metric signed_inhibitor
    activation_function unknown sep_token_id
"""
CONFIG_FIELDS = [
    *(field.name for field in dataclasses.fields(InhibiDistilBertConfig)),
    *InhibiDistilBertConfig.attribute_map,
    *OTHER_CONFIG_FIELDS.split(),
]
TOKENIZER_FIELDS = """
    tokenizer_class model_max_length do_lower_case strip_accents tokenize_chinese_chars padding_side unknown
    truncation_side model_input_names added_tokens_decoder extra_special_tokens clean_up_tokenization_spaces
    vocab_file additional_special_tokens auto_map tokenizer_file chat_template processor_class backend
    is_local name_or_path never_split special_tokens_map_file add_prefix_space split_special_tokens cls_token
    sep_token pad_token unk_token mask_token bos_token errors max_len legacy vocab
"""
FILES = f"""
    config.json {WEIGHTS} tokenizer.json tokenizer_config.json vocab.txt special_tokens_map.json
    added_tokens.json generation_config.json README.md eval_results.json adapter_config.json merges.txt
    {INDEX} pytorch_model.bin a.py LICENSE model-00001-of-00002.safetensors chat_template.jinja
    distillation.json pytorch_model.bin.index.json vocab.json
"""
TEXT_FILES = """
    config.json tokenizer.json tokenizer_config.json README.md special_tokens_map.json added_tokens.json
    vocab.txt eval_results.json generation_config.json distillation.json
"""
DEVICES = ("/dev/zero", "/dev/null", "/dev/stdin", "/dev/full", "/dev/urandom", "/dev/fd/0", "/proc/self/mem", "/dev/tty")


def write_originals(folder: Path) -> None:
    """The folders that are spoilt: a classifier, `own`, and a DistilBERT to convert, `source`; and texts."""
    torch.manual_seed(5)
    config = tiny_config()
    InhibiDistilBertForSequenceClassification(config).save_pretrained(folder / "own")
    names = ("vocab_size", "max_position_embeddings", "dim", "hidden_dim", "n_layers", "n_heads", "id2label", "label2id")
    source = DistilBertConfig(**{name: getattr(config, name) for name in names})
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


def unspoilt(command: str, originals: Path, folder: Path) -> Path:
    """The folder that a command reads."""
    copy(originals / ("source" if command == "convert" else "own"), folder / "model")
    return folder / "model"


def cases(originals: Path) -> dict[str, Case]:
    """The commands that read the folder `model`, by name; each prints JSON."""
    data = str(originals / "data.csv")
    lines = {
        "predict": ("--model", "model", "--all-scores", *TEXTS),
        "evaluate": ("model", "--task", "classification", "--data", data, "--output", "results"),
        "publish": ("model", "--repo-id", "someone/tiny", "--dry-run"),
        "quantize": ("model", "quantized"),
        "convert": ("model", "converted"),
    }
    return {command: Case((command, *words, "--json")) for command, words in lines.items()}


def made(seed: int, place: int, originals: Path, folder: Path) -> Trial:
    """The spoilt folder at a place of the list of this seed, below `folder`, and the command that reads it."""
    random = Random(f"folder {seed} {place}")  # so that each can be made alone
    command = random.choices(("predict", "evaluate", "publish", "quantize", "convert"), (35, 20, 20, 12, 13))[0]
    kinds = {
        **{config_value: 30, labels: 8, kind_of_file: 18, text_of_file: 10, weights: 14, shards: 8},
        **{tokenizer_value: 10, tokenizer_field: 8, special_tokens: 3},
    }
    spoil: Callable[[Random, Path], Spoilt] = random.choices([*kinds], [*kinds.values()])[0]
    what, meaning = spoil(random, unspoilt(command, originals, folder))
    return Trial(command, cases(originals)[command], what, meaning)


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
    return text if len(text) < 80 else f"{text[:50]}…({len(text)})"


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_bytes()) if file.exists() else {}
    change(content)
    replace(file, as_json(content))


def config_value(random: Random, folder: Path) -> Spoilt:
    field, value = random.choice(CONFIG_FIELDS), random.choice(VALUES)
    if random.random() < 0.15:
        hard = [
            ("num_labels", "2"),
            ("num_labels", 10**9),
            ("n_layers", 1e9),
            ("n_layers", 10**9),
            ("num_hidden_layers", 10**9),
        ]
        field, value = random.choice(hard)
    edit(folder / "config.json", lambda config: config.update({field: value}))
    # Of the right type and within the range, these say another model.
    free = value is None or isinstance(value, bool) or (value in (1, 2) and field in ("n_heads", "num_attention_heads"))
    return f"config.json: {field} = {shown(value)}", FREE if free else KEPT


LABELS: dict[str, tuple[Any, ...]] = {
    "id2label": (
        *({}, {"0": "A"}, {"0": "A", "1": "A"}, {"0": "A", "2": "B"}, {"1": "A", "2": "B"}, {"0": "A", "1": "B", "2": "C"}),
        *({"a": "A", "b": "B"}, {"0": None, "1": "B"}, {"0": 0, "1": 1}, {"0": [], "1": {}}, {"-1": "A", "0": "B"}, None, 2),
        *({"0": "", "1": ""}, {"00": "A", "0": "B", "1": "C"}, {"0": "A\nB", "1": "\x1b[31mC"}, ["A", "B"], "AB"),
        *({"0": "x" * 100_000, "1": "B"}, {"٠": "A", "1": "B"}, {" 0": "A", "1_0": "B"}, {"0.0": "A", "1": "B"}),
        *({str(i): f"L{i}" for i in range(5000)}, {"0": "\ud800", "1": "B"}, {"0": True, "1": False}),
    ),
    "label2id": (
        *({}, {"A": 0}, {"A": 1, "B": 0}, {"A": 0, "B": 0}, {"A": "x"}, {"NEGATIVE": 1, "POSITIVE": 0}, [], None, "A", 1),
        *({"A": None}, {"A": 10**30}, {"A": 0.5}, {"NEGATIVE": "0", "POSITIVE": "1"}, {"A": [0]}, {"A": NAN}),
    ),
    "num_labels": (2, "2", 3, 1, 0, -1, None, [], 2.0, 10**9, 1e9, True, {}),
    "problem_type": ("regression", "multi_label_classification", "single_label_classification", "x", 1, [], None, {}),
}


def labels(random: Random, folder: Path) -> Spoilt:
    """Numbers and names of the labels that contradict each other, or are none."""
    changes = {name: random.choice(LABELS[name]) for name in random.sample([*LABELS], random.choice([1, 1, 2, 3, 4]))}
    edit(folder / "config.json", lambda config: config.update(changes))
    return f"config.json: {shown(changes)}", FREE


def _unreadable(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    file.chmod(0)


def _socket(file: Path, content: bytes) -> None:
    here = os.open(".", os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as end:
        os.chdir(file.parent)  # the names of sockets are short
        end.bind(file.name)
    os.fchdir(here)
    os.close(here)


def _elsewhere(file: Path, content: bytes) -> None:
    (file.parent.parent / f"other-{file.name}").write_bytes(content)
    file.symlink_to(f"../other-{file.name}")


def _link(target: str, file: Path, content: bytes) -> None:
    file.symlink_to(target or file.name)


KINDS: dict[str, Callable[[Path, bytes], object]] = {
    "missing": lambda file, content: None,
    "empty": lambda file, content: file.touch(),
    "fifo": lambda file, content: os.mkfifo(file),
    "folder": lambda file, content: file.mkdir(),
    "socket": _socket,
    "unreadable": _unreadable,
    "a link elsewhere": _elsewhere,
    "a link to itself": partial(_link, ""),
    **{f"a link to {target}": partial(_link, target) for target in ("gone", ".", *DEVICES)},
}


def kind_of_file(random: Random, folder: Path) -> Spoilt:
    """Something else than a regular file, or none."""
    file, kind = folder / random.choice(FILES.split()), random.choice([*KINDS])
    content = file.read_bytes() if file.exists() else b"{}"
    file.unlink(missing_ok=True)
    KINDS[kind](file, content)
    return f"{file.name}: {kind}", FREE if kind in ("missing", "empty") else KEPT


def text_of_file(random: Random, folder: Path) -> Spoilt:
    file = folder / random.choice(TEXT_FILES.split())
    content = file.read_bytes() if file.exists() else b'{"a": 1}'
    place, end = random.randrange(len(content)), content.rstrip()[:-1]
    # Of these the text stays one of JSON.
    free = {
        "garbled": content[:place] + random.randbytes(random.randint(1, 30)) + content[place + 3 :],
        "twice": end + b', "model_type": "bert", "id2label": {"0": "POSITIVE", "1": "NEGATIVE"}, "version": 3}',
        "NUL": content[:place] + b"\0" + content[place:],
    }
    ways = free | {
        "truncated": content[:place],
        **{name: content.decode().encode(name) for name in ("utf-8-sig", "utf-16", "utf-32")},
        "Latin-1": content[:-2] + b"\xe4" + content[-2:],
        "long": content + b" " * 30_000_000,
        "many": b'{"a": [' + b"1," * 3_000_000 + b"1]}",
        "deep": b"[" * DEEP + b"]" * DEEP,
        "deep object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        "digits": b'{"a": ' + b"7" * 10_000 + b"}",
        "comma": end + b",}",
        "surplus": content + b"}",
        "double": content + content,
        **{text: text.encode() for text in ("[1, 2]", "3", "null", '"a"', '{"a": NaN, "b": -Infinity}', " \n")},
    }
    way = random.choice([*ways])
    replace(file, ways[way])
    decides = file.name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    return f"{file.name}: {way}", KEPT if decides and way not in free else FREE


def tensors(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a file of weights."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_tensors(file: Path, header: Any, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else as_json(header).encode()
    replace(file, struct.pack("<Q", (len(text) if length is None else length) % 2**64) + text + data)


def weights(random: Random, folder: Path) -> Spoilt:
    file = folder / WEIGHTS
    header, data = tensors(file)
    names = sorted(name for name in header if name != "__metadata__")
    name = random.choice(names)
    begin, end = header[name]["data_offsets"]
    ways = [
        "length",
        "offsets",
        "shape",
        "dtype",
        "values",
        "renamed",
        "lost",
        "surplus",
        "bytes",
        "bytes",
        "metadata",
        "header",
    ]
    ways += ["entry", "swapped", "twice", "garbled"]
    way, meaning, length = random.choice(ways), REFUSED, None
    if way == "length":
        length = random.choice([0, 1, 2**63, 2**64 - 1, len(data), 10**9, -1, 100, len(as_json(header)) + 1])
    elif way == "offsets":
        wrong = [[0, 4], [end, begin], [begin + 4, end + 4], [-1, 3], [begin, 2**63], [begin, 2**64], ["0", "4"], [], None]
        header[name]["data_offsets"] = random.choice(wrong)
    elif way == "shape":
        shapes = [[10**9], [0], [], [1] * 100, [2**32] * 3, [-1, -4], "a", None, [1.5], [(end - begin) // 4, 1, 1]]
        header[name]["shape"] = random.choice(shapes)
    elif way == "dtype":
        types = ["I32", "BF16", "F64", "U8", "BOOL", "C64", "F8_E4M3", "Q", 1, None, [], "f32", "I8"]
        header[name]["dtype"] = random.choice(types)
    elif way == "values":
        value = random.choice([NAN, INFINITY, -INFINITY, 3e38])
        data = data[:begin] + struct.pack("<f", value) * ((end - begin) // 4) + data[end:]
        meaning = FREE if value == 3e38 else REFUSED
    elif way == "renamed":
        others = ["other", name + "x", f"distilbert.{name}", f"x.{name}", "", "\ud800", name.upper()]
        header[random.choice(others)] = header.pop(name)
    elif way == "lost":
        header = {each: fields for each, fields in header.items() if each != name}
        for each in names:
            if each != name and header[each]["data_offsets"][0] >= end:
                header[each]["data_offsets"] = [offset - end + begin for offset in header[each]["data_offsets"]]
        data = data[:begin] + data[end:]
    elif way == "surplus":
        others = [
            "distilbert.transformer.layer.2.attention.alpha",
            "distilbert.x",
            "y",
            "classifier.z",
            "pre_classifier.alpha",
        ]
        header[random.choice(others)] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
        data, meaning = data + bytes(4), KEPT
    elif way == "metadata":
        values = [{}, {"format": "tf"}, {"format": 1}, "pt", [], None, {"format": "pt", "a": {}}]
        header["__metadata__"], meaning = random.choice(values), KEPT
    elif way == "header":
        texts = [b"[]", b"1", b"null", b"{", b"", b"{}{}", b'{"a": 1}', b'{"a": {}}', b"\xff\xfe", b"{}"]
        header = random.choice([*texts, b'{"a":' * DEEP + b"1" + b"}" * DEEP])
    elif way == "entry":
        values = [None, 1, "a", [], {}, {"dtype": "F32"}, {"dtype": "F32", "shape": [], "data_offsets": [0, 0]}]
        header[name] = random.choice(values)
    elif way == "swapped":
        alike = [each for each in names if header[each]["shape"] == header[name]["shape"]]
        other = random.choice(alike)
        header[name], header[other], meaning = header[other], header[name], FREE
    elif way == "twice":
        header = f'{as_json(header)[:-1]}, "{name}": {json.dumps(header[names[0]])}}}'.encode()
        meaning = FREE
    elif way == "garbled":
        text = bytearray(as_json(header).encode())
        for _ in range(random.randint(1, 8)):
            text[random.randrange(len(text))] = random.randrange(256)
        header, meaning = bytes(text), FREE
    write_tensors(file, header, data, length)
    if way == "bytes":
        content, page = file.read_bytes(), b"<!DOCTYPE html><html><body>404: Not Found</body></html>\n" * 20
        pickled = folder.parent / "pickled"
        torch.save({"a": torch.zeros(2)}, pickled)
        cut, more = content[: random.randrange(len(content))], content + random.randbytes(8)
        replace(file, random.choice([cut, cut, more, page, b"PK\x03\x04" + random.randbytes(500), pickled.read_bytes()]))
    return f"{WEIGHTS}: {way} ({name})", meaning


def shards(random: Random, folder: Path) -> Spoilt:
    """Weights with an index, and something wrong with it or with the file that it names."""
    shard = folder / random.choice(["model-00001-of-00001.safetensors", "model-00001-of-00002.safetensors"])
    header, data = tensors(folder / WEIGHTS)
    names = sorted(name for name in header if name != "__metadata__")
    content: Any = {"metadata": {"total_size": len(data)}, "weight_map": dict.fromkeys(names, shard.name)}
    ways = ["right", "name", "name", "some names", "map", "shard", "shard", "index", "one lost", "size", "two of each"]
    way, meaning = random.choice(ways), KEPT
    if way != "two of each":
        (folder / WEIGHTS).rename(shard)
    if way == "name":
        others = [
            f"./{shard.name}",
            f"sub/../{shard.name}",
            "~/x",
            "file:///etc/passwd",
            WEIGHTS,
            INDEX,
            ".",
            "",
            "..",
            "fifo",
        ]
        name = random.choice([*DEVICES, *others, "../own/model.safetensors", "config.json", "a" * 300, "\0", "\ud800"])
        content["weight_map"] = dict.fromkeys(names, name)
        os.mkfifo(folder / "fifo")
        way += f" {shown(name)}"
    elif way == "some names":
        for name in random.sample(names, 3):
            content["weight_map"][name] = random.choice(
                ["/dev/zero", "../x", None, 1, [], "model-00009-of-00009.safetensors"]
            )
    elif way == "map":
        content["weight_map"] = random.choice(VALUES)
        way += f" {shown(content['weight_map'])}"
    elif way == "shard":
        kind, weights_ = random.choice([*KINDS]), shard.read_bytes()
        shard.unlink()
        KINDS[kind](shard, weights_)
        way += f" is {kind}"
    elif way == "index":
        others = [{}, {"metadata": {}}, {"weight_map": {}}, {"metadata": None, "weight_map": {"a": shard.name}}]
        content = random.choice([*others, Raw("{"), Raw(""), [], None])
        way += f" {shown(content)}"
    elif way == "one lost":
        del content["weight_map"][random.choice(names)]
    elif way == "size":
        content["metadata"] = {"total_size": random.choice(VALUES)}
    replace(folder / INDEX, as_json(content))
    return f"{INDEX}: {way}", meaning


NO_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
PARTS: dict[str, tuple[Any, ...]] = {
    "added_tokens": (
        *([], None, {}, [1], [{}], [{"id": 10**6, "content": "film", "special": False}]),
        *(
            [{"id": 99, "content": "good", "special": True} | NO_FLAGS],
            [{"id": -1, "content": "", "special": True} | NO_FLAGS],
        ),
    ),
    "post_processor": (
        *(None, {}, {"type": "Sequence", "processors": []}),
        {"type": "BertProcessing", "sep": ["[SEP]", 10**6], "cls": ["[CLS]", 10**6]},
    ),
    "model": (
        *(None, {}, {"type": "x"}, {"type": "WordLevel"}, {"type": "BPE", "vocab": {"a": 0}, "merges": []}),
        *({"type": "Unigram", "vocab": [["a", 0.0]]}, {"type": "Unigram", "vocab": [], "unk_id": 5}),
        {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "b"},
    ),
    "version": ("2.0", 1, None, "", [], "1.0.0"),
    "truncation": (
        *({"max_length": 1}, {}, 1),
        {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0},
    ),
}


def tokenizer_value(random: Random, folder: Path) -> Spoilt:
    """A value anywhere in tokenizer.json."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_bytes())
    what, meaning = random.choice(["value", "value", "value", "lost", "no vocabulary", "ids", *PARTS]), FREE
    if what in ("value", "lost"):
        part = content
        while True:
            key = random.choice(sorted(part) if isinstance(part, dict) else range(len(part)))
            what += f".{key}"
            if not (isinstance(part[key], dict | list) and part[key] and random.random() < 0.75):
                break
            part = part[key]
        if what.startswith("lost"):
            del part[key]
        else:
            part[key] = random.choice(VALUES)
            what += f" = {shown(part[key])}"
    elif what == "no vocabulary":
        content["model"]["vocab"] = random.choice([{}, [], None, {"[PAD]": 0}, {"a": "b"}, ["a", "b"]])
        meaning = REFUSED
    elif what == "ids":
        offset = random.choice([10**6, 2**32, -1, -100, 0.5, 2**64])
        content["model"]["vocab"] = {token: place + offset for token, place in content["model"]["vocab"].items()}
        what, meaning = f"ids {offset} higher", REFUSED
    else:
        content[what] = random.choice(PARTS[what])
        what += f" = {shown(content[what])}"
    replace(file, as_json(content))
    return f"tokenizer.json: {what}", meaning


def tokenizer_field(random: Random, folder: Path) -> Spoilt:
    field, value = random.choice(TOKENIZER_FIELDS.split()), random.choice(VALUES)
    name = random.choice([*["tokenizer_config.json"] * 4, "special_tokens_map.json", "added_tokens.json"])
    edit(folder / name, lambda fields: fields.update({field: value}))
    return f"{name}: {field} = {shown(value)}", FREE


def special_tokens(random: Random, folder: Path) -> Spoilt:
    """Without one of the special tokens, or with another."""
    name = random.choice(["pad", "unk", "cls", "sep", "mask"])
    token = f"[{name.upper()}]"

    def drop(content: dict[str, Any]) -> None:
        content["model"]["vocab"].pop(token, None)
        content["added_tokens"] = [each for each in content["added_tokens"] if each["content"] != token]

    edit(folder / "tokenizer.json", drop)
    other = random.choice([None, token, "gone", ""])
    edit(folder / "tokenizer_config.json", lambda fields: fields.update({f"{name}_token": other}))
    return f"{token} is gone, {name}_token is {other!r}", FREE
