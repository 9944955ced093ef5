"""What a stranger does with a published model: run in an interpreter that cannot import the package it came from.

`python -I stranger.py REQUEST.json OUTPUTS.safetensors` loads the tokenizer and the model through every Auto class and the
pipeline that the request names, and writes the outputs: `{"<Auto class>/<implementation>": tensor}`. What goes wrong ends
it with a traceback.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

PACKAGE = "inhibidistilbert"


class PackageIsAbsent:
    """A meta-path finder for which the package does not exist, however it was installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == PACKAGE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@torch.no_grad()
def model_outputs(model: torch.nn.Module, tokenizer, texts: list[str]) -> torch.Tensor:
    """The outputs for `texts` as one padded batch, every one that the model gives, flat and in float32."""
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    if "MultipleChoice" in type(model).__name__:
        inputs = {name: tensor[None] for name, tensor in inputs.items()}
    outputs = model.eval()(**inputs)
    return torch.cat([tensor.float().flatten() for tensor in outputs.values() if torch.is_tensor(tensor)])


def main(request_file: str, target: str) -> None:
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    trusted = {"revision": request["revision"], "trust_remote_code": True}
    source, texts = request["source"], request["texts"]
    transformers.AutoConfig.from_pretrained(source, **trusted)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **trusted)
    outputs = {}
    for auto_class in request["auto_classes"]:
        for implementation in request["implementations"]:
            model = getattr(transformers, auto_class).from_pretrained(
                source, attn_implementation=implementation, dtype=torch.float32, **trusted
            )
            outputs[f"{auto_class}/{implementation}"] = model_outputs(model, tokenizer, texts)
    if request["pipeline"]:
        text = f"{texts[0]} {tokenizer.mask_token}" if request["pipeline"] == "fill-mask" else texts[0]
        transformers.pipeline(request["pipeline"], model=source, **trusted)(text)
    save_file(outputs, target)


if __name__ == "__main__":
    sys.meta_path.insert(0, PackageIsAbsent())
    main(*sys.argv[1:])
