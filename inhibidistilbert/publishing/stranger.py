"""What a stranger does with a published model: run in an interpreter that cannot import the package it came from.

`stranger.py REQUEST OUTPUTS.safetensors` loads the tokenizer and the model through every Auto class and the pipeline that
the request names, which is JSON. It writes the outputs: `{"<Auto class>/<implementation>": tensor}`. What goes wrong ends it
with a traceback.
"""

import json
import sys

import torch
import transformers
from safetensors.torch import save_file


@torch.no_grad()
def model_outputs(model: torch.nn.Module, tokenizer, texts: list[str]) -> torch.Tensor:
    """The outputs for `texts` as one padded batch, every one that the model gives, flat and in float32."""
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    if "MultipleChoice" in type(model).__name__:
        inputs = {name: tensor[None] for name, tensor in inputs.items()}
    outputs = model.eval()(**inputs)
    return torch.cat([tensor.float().flatten() for tensor in outputs.values() if torch.is_tensor(tensor)])


def main(request_text: str, target: str) -> None:
    request = json.loads(request_text)
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
    main(*sys.argv[1:])
