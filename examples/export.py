"""Export a classifier to ONNX, for batches and texts of any length, and check it in onnxruntime against torch."""

import argparse
import sys
from pathlib import Path

import onnxruntime
import torch
from torch.export import Dim
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from inhibidistilbert.prediction import default_checkpoint  # Importing the package makes the Auto classes know the model.

TEXTS = ["A warm, funny film with two leads you could watch for hours.", "It broke after two days.", "Fine."]
TOLERANCE = 1e-4


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", default=str(default_checkpoint()), help="a folder or the name of a repository")
    parser.add_argument("--output", type=Path, default=Path("runs/model.onnx"), help="the file to write")
    options = parser.parse_args(arguments)

    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(options.checkpoint).eval()

    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    inputs = encode(TEXTS)
    sizes = {0: Dim("texts", min=1, max=1024), 1: Dim("length", min=1, max=model.config.max_position_embeddings)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model,
        (),
        options.output,
        kwargs=inputs,
        dynamic_shapes=dict.fromkeys(inputs, sizes),
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )

    session = onnxruntime.InferenceSession(options.output, providers=["CPUExecutionProvider"])
    largest = 0.0
    for texts in (TEXTS, TEXTS[:1], TEXTS * 3, ["A long story. " * 200]):
        inputs = encode(texts)
        (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
        with torch.no_grad():
            difference = (torch.from_numpy(logits) - model(**inputs).logits).abs().max().item()
        print(f"{len(texts)} texts of {inputs['input_ids'].shape[1]} tokens: logits differ by {difference:.1e} at most")
        largest = max(largest, difference)
    print(f"{options.output} {'agrees' if largest < TOLERANCE else 'DISAGREES'} with torch within {TOLERANCE:.0e}")
    return 0 if largest < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
