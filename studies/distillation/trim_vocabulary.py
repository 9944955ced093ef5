"""Takes tokens out of a checkpoint folder whose rows of the word embeddings are not worth their bytes.

`python -m studies.distillation.trim_vocabulary FOLDER` takes those that BERT's vocabulary keeps for nothing, `[unused0]` and
on: 994 of them, a quarter of a megabyte of a tiny model in float16. Any text has the same words and gets the same logits.

With `--least 15 --texts FILE.csv …` it also takes words that occur fewer than 15 times in the column `text` of these files.
They are spelled from pieces that stay, so this is for a teacher that is yet to be fine-tuned.
"""

import argparse
import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from inhibidistilbert.support.files import replacing_folder

_UNUSED = re.compile(r"\[unused\d+\]")
_ROW_A_TOKEN = ("word_embeddings.weight", "vocab_projector.weight", "vocab_projector.bias")
# Whatever else goes, these stay, so that any word of ASCII characters can be spelled.
_CHARACTER = re.compile(r"(##)?[!-~]")


def rare_tokens(folder: Path, texts: Sequence[str], least: int) -> set[str]:
    """Tokens of the folder's tokenizer that occur fewer than `least` times in the texts; no special one, no character."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    counts: Counter[str] = Counter()
    for start in range(0, len(texts), 1000):
        for encoding in tokenizer.encode_batch(texts[start : start + 1000]):
            counts.update(encoding.tokens)
    special = {added.content for added in tokenizer.get_added_tokens_decoder().values()}
    return {
        token
        for token in tokenizer.get_vocab()
        if counts[token] < least and token not in special and not _CHARACTER.fullmatch(token)
    }


def trim_vocabulary(folder: Path, texts: Sequence[str] = (), least: int = 0) -> int:
    """Returns how many tokens went: the unused ones and, of the rest, those with fewer than `least` places in `texts`."""
    rare = rare_tokens(folder, texts, least)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    in_order = sorted(vocabulary, key=lambda token: vocabulary[token])
    kept = [token for token in in_order if token not in rare and not _UNUSED.fullmatch(token)]
    rows = torch.tensor([vocabulary[token] for token in kept])
    numbers = {token: number for number, token in enumerate(kept)}
    tokenizer["model"]["vocab"] = numbers
    for added in tokenizer["added_tokens"]:
        added["id"] = numbers[added["content"]]
    for special in tokenizer["post_processor"].get("special_tokens", {}).values():
        special["ids"] = [numbers[token] for token in special["tokens"]]

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = len(kept)
    config["pad_token_id"] = numbers[kept[int((rows == config["pad_token_id"]).nonzero())]]
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(_ROW_A_TOKEN):
            weights[name] = weight[rows].contiguous()

    with replacing_folder(folder) as new:
        for file in folder.iterdir():
            (new / file.name).write_bytes(file.read_bytes())
        text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
        (new / "tokenizer.json").write_text(text, encoding="utf-8")
        (new / "config.json").write_text(json.dumps(config, separators=(",", ":")), encoding="utf-8")
        save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
    return len(vocabulary) - len(kept)


def _texts(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=Path, nargs="+", default=[], metavar="FILE.csv")
    parser.add_argument("--least", type=int, default=0)
    arguments = parser.parse_args()
    read = [text for path in arguments.texts for text in _texts(path)]
    print(f"{trim_vocabulary(arguments.folder, read, arguments.least)} tokens removed")
