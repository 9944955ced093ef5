"""Takes the tokens that BERT's vocabulary keeps for nothing, `[unused0]` and on, out of a checkpoint folder.

`python -m studies.distillation.trim_vocabulary FOLDER` writes the folder anew: 994 rows of the word embeddings fewer, a
quarter of a megabyte of a tiny model in float16. Any text has the same words and gets the same logits.
"""

import json
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from inhibidistilbert.support.files import replacing_folder

_UNUSED = re.compile(r"\[unused\d+\]")
_ROW_A_TOKEN = ("word_embeddings.weight", "vocab_projector.weight", "vocab_projector.bias")


def trim_vocabulary(folder: Path) -> int:
    """Returns how many tokens went."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    kept = [token for token in sorted(vocabulary, key=lambda token: vocabulary[token]) if not _UNUSED.fullmatch(token)]
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


if __name__ == "__main__":
    print(f"{trim_vocabulary(Path(sys.argv[1]))} tokens removed")
