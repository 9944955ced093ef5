"""Serve a classifier over HTTP with FastAPI: many request threads, one int8 model.

python serve.py
curl localhost:8000/predict --json '{"texts": ["A warm, funny film."]}'
"""

import argparse
from pathlib import Path
from threading import BoundedSemaphore
from typing import Annotated

import torch
from fastapi import FastAPI
from pydantic import BaseModel, Field

from inhibidistilbert import quantize
from inhibidistilbert.prediction import TextClassifier, default_checkpoint

TEXTS = 64  # a request; more are answered with 422
CHARACTERS = 10_000  # a text; the model reads its first 512 tokens


class Request(BaseModel):
    texts: list[Annotated[str, Field(max_length=CHARACTERS)]] = Field(min_length=1, max_length=TEXTS)


class Answer(BaseModel):
    label: str
    score: float


def create_app(checkpoint: Path, batch_size: int = 16, at_once: int = 2) -> FastAPI:
    """The application.

    batch_size: the most texts a forward pass, whatever a request holds.
    at_once: the most requests that compute at a time; the others wait. Together they bound the memory.
    """
    if at_once < 1:
        raise ValueError(f"at_once must be at least 1, got {at_once}.")
    loaded = TextClassifier.from_folder(checkpoint, device="cpu")
    classifier = TextClassifier(quantize(loaded.model), loaded.tokenizer, batch_size=batch_size)
    list(classifier.predict(["Compiles the model's code and sets up the tokenizer before threads share them."]))
    turns = BoundedSemaphore(at_once)
    app = FastAPI(title="InhibiDistilBERT")

    # No `async`: FastAPI then runs each request on one of its threads, and goes on accepting others.
    @app.post("/predict")
    def predict(request: Request) -> list[Answer]:
        with turns:
            return [Answer(label=found.label, score=found.score) for found in classifier.predict(request.texts)]

    return app


def main() -> None:
    import uvicorn

    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=default_checkpoint(), help="a folder written by save_pretrained")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="its port")
    parser.add_argument("--batch-size", type=int, default=16, help="the most texts a forward pass")
    parser.add_argument("--at-once", type=int, default=torch.get_num_threads(), help="the most requests computed at a time")
    options = parser.parse_args()
    torch.set_num_threads(1)  # Requests share the cores already; threads inside each would wait for one another.
    uvicorn.run(create_app(options.checkpoint, options.batch_size, options.at_once), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
