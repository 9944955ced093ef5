"""Loads a checkpoint as a stranger would, and compares what it computes with the maintainer's own model."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..modeling import modeling_inhibidistilbert
from ..support.clean_process import ProcessError, run_script
from ..support.errors import UserError, reason
from ..support.models import load_model, load_tokenizer
from . import stranger
from .assemble import Candidate
from .checks import Problem
from .tasks import PIPELINE_TAGS, PIPELINES, auto_class

IMPLEMENTATIONS = ("inhibitor", "eager")
TEXTS = ("A quiet film, and a joy.", "It broke.", "The story of two old friends is slow, but it stays with you for days.")
# Root mean square of the difference over that of the outputs: equal up to the rounding of float32 sums.
TOLERANCE = 1e-5
# A process or a model that does not do what it should raises these.
LOADING_ERRORS = (
    ProcessError,
    UserError,
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    TypeError,
    SafetensorError,
)
_WEIGHTS = "model.safetensors"
_REMEDY = "save model and tokenizer again with save_pretrained; is the folder whole?"


def loading_problems(reference: Path, architecture: str, source: str, revision: str | None, home: Path) -> Iterator[Problem]:
    """Run the code of `source` in a clean process, and compare its model with this package's model of `reference`.

    source: a folder, or with `revision` a repository that is in the cache of the Hub in `home`.
    """
    head = auto_class(architecture)
    try:
        # Before the code runs, which may write to these folders.
        expected = own_outputs(reference, architecture)
        outputs = stranger_outputs(source, revision, architecture, home)
        differing = {name: (expected[name], outputs[f"{head}/{name}"]) for name in IMPLEMENTATIONS}
    except LOADING_ERRORS as error:
        yield Problem(
            "modeling_inhibidistilbert.py", f"the model does not load elsewhere: {reason(error).removesuffix('.')}", _REMEDY
        )
        return
    yield from _differences("modeling_inhibidistilbert.py", differing)


def data_problems(candidate: Candidate, reference: Path | None) -> Iterator[Problem]:
    """Load the weights and the tokenizer of a folder with this package's classes: none of its code is run.

    reference: a folder whose model it is to equal; without one, its outputs are to be finite.
    """
    try:
        found = own_outputs(candidate.folder, candidate.architecture)
        expected = found if reference is None else own_outputs(reference, candidate.architecture)
    except LOADING_ERRORS as error:
        yield Problem(_WEIGHTS, f"the model does not load: {reason(error).removesuffix('.')}", _REMEDY)
        return
    yield from _differences(_WEIGHTS, {name: (expected[name], found[name]) for name in IMPLEMENTATIONS})


def _differences(file: str, outputs: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[Problem]:
    """outputs: by implementation what is right, and what is there."""
    for implementation, (expected, found) in outputs.items():
        difference = relative_error(found, expected)
        if not difference <= TOLERANCE:
            what = f"with attn_implementation={implementation!r} outputs differ by {difference:.1e} of their size"
            yield Problem(file, what, _REMEDY)


def stranger_outputs(source: str, revision: str | None, architecture: str, home: Path) -> dict[str, Tensor]:
    """The outputs of the model in `source` in a clean process, by Auto class and implementation.

    Raises:
        ProcessError: it does not load.
    """
    tag = PIPELINE_TAGS[architecture]
    request = {
        "source": source,
        "revision": revision,
        "auto_classes": sorted({"AutoModel", auto_class(architecture)}),
        "implementations": IMPLEMENTATIONS,
        "pipeline": tag if tag in PIPELINES else None,
        "texts": TEXTS,
    }
    return script_outputs(stranger.__file__, json.dumps(request), home)


def script_outputs(script: str, argument: object, home: Path) -> dict[str, Tensor]:
    """What a script writes in a clean process, given `argument` and the file to write.

    Raises:
        ProcessError: it failed, or wrote no regular file, but a pipe without an end or the like.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "outputs.safetensors")
        run_script(script, argument, target, folder=Path(folder), home=home)
        if target.is_symlink() or not target.is_file():
            raise ProcessError("it wrote no outputs")
        return load_file(target)


def own_outputs(folder: Path, architecture: str) -> dict[str, Tensor]:
    """The outputs of this package's model of the checkpoint in `folder`, by implementation."""
    model_class = getattr(modeling_inhibidistilbert, architecture)
    where = "the checkpoint"
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    tokenizer, outputs = load_tokenizer(folder, where), {}
    for implementation in IMPLEMENTATIONS:
        model = load_model(model_class, folder, where, attn_implementation=implementation, **options).model
        outputs[implementation] = stranger.model_outputs(model, tokenizer, list(TEXTS))
    return outputs


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, of that of `expected`; infinite where shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    size = expected.double().norm().clamp_min(torch.finfo(torch.float32).tiny)
    return float((actual.double() - expected.double()).norm() / size)
