"""Loads a checkpoint as a stranger would, and compares what it computes with the maintainer's own model."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import constants, get_token
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from ..errors import reason
from ..modeling import modeling_inhibidistilbert
from ..quiet import quiet_transformers
from . import stranger
from .assemble import Candidate
from .checks import Problem
from .tasks import PIPELINE_TAGS, PIPELINES, auto_class

IMPLEMENTATIONS = ("inhibitor", "eager")
TEXTS = ("A quiet film, and a joy.", "It broke.", "The story of two old friends is slow, but it stays with you for days.")
# Of the root mean square: equal up to the rounding of float32 sums.
TOLERANCE = 1e-5
_SECONDS = 600


def check_loading(candidate: Candidate) -> Iterator[Problem]:
    """The assembled folder loads offline, with empty caches and without this package, and computes the same."""
    yield from loading_problems(candidate.source, candidate.architecture, str(candidate.folder))


def loading_problems(reference: Path, architecture: str, source: str, revision: str | None = None) -> Iterator[Problem]:
    """Load `source`, a folder or with `revision` a repository, and compare with this package's model of `reference`."""
    head = auto_class(architecture)
    remedy = "save model and tokenizer again with save_pretrained; is the folder whole?"
    try:
        outputs = stranger_outputs(source, revision, architecture)
        expected = own_outputs(reference, architecture)
    except (LoadingError, subprocess.TimeoutExpired, OSError, ValueError, KeyError, RuntimeError) as error:
        yield Problem("modeling_inhibidistilbert.py", f"the model does not load elsewhere: {reason(error)}", remedy)
        return
    for implementation in IMPLEMENTATIONS:
        ours, theirs = expected[implementation], outputs[f"{head}/{implementation}"]
        difference = relative_error(theirs, ours)
        if not difference <= TOLERANCE:
            what = f"with attn_implementation={implementation!r} outputs differ by {difference:.1e} of their size"
            yield Problem("modeling_inhibidistilbert.py", what, remedy)


class LoadingError(Exception):
    """What the stranger's interpreter said last."""


def stranger_outputs(source: str, revision: str | None, architecture: str) -> dict[str, Tensor]:
    """The outputs of the model in `source` in a clean interpreter, by Auto class and implementation.

    Without a revision it is offline and has no token.

    Raises:
        LoadingError: it does not load.
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
    with tempfile.TemporaryDirectory() as folder:
        target, request_file = Path(folder, "outputs.safetensors"), Path(folder, "request.json")
        request_file.write_text(json.dumps(request), encoding="utf-8")
        process = subprocess.run(
            [sys.executable, "-I", stranger.__file__, str(request_file), str(target)],
            cwd=folder,
            env=clean_environment(Path(folder), online=revision is not None),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        if process.returncode != 0:
            lines = [line for line in process.stderr.splitlines() if line.strip()]
            raise LoadingError(lines[-1] if lines else f"exit code {process.returncode}")
        return load_file(target)


def clean_environment(folder: Path, online: bool) -> dict[str, str]:
    """This process's environment with empty caches; the token goes along only where files are to be fetched."""
    prefixes = ("HF_", "HUGGING", "TRANSFORMERS_", "PYTHON")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    clean |= {
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_ENDPOINT": constants.ENDPOINT,
        # The same split of work over threads, hence the same rounding, as in this process.
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    if not online:
        return clean | {"HF_HUB_OFFLINE": "1"}
    clean |= {"HF_HUB_DISABLE_XET": "1"} if constants.HF_HUB_DISABLE_XET else {}
    return clean | ({"HF_TOKEN": token} if (token := get_token()) else {})


def own_outputs(folder: Path, architecture: str) -> dict[str, Tensor]:
    """The outputs of this package's model of the checkpoint in `folder`, by implementation."""
    model_class = getattr(modeling_inhibidistilbert, architecture)
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        outputs = {}
        for implementation in IMPLEMENTATIONS:
            model, report = model_class.from_pretrained(
                folder,
                attn_implementation=implementation,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
            if report["missing_keys"]:
                raise ValueError(f"the weights lack {', '.join(sorted(report['missing_keys']))}")
            outputs[implementation] = stranger.model_outputs(model, tokenizer, list(TEXTS))
    return outputs


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, of that of `expected`; infinite where shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    size = expected.double().norm().clamp_min(torch.finfo(torch.float32).tiny)
    return float((actual.double() - expected.double()).norm() / size)
