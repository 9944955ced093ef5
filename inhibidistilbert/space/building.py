"""Builds the page: the model, the sources beside this file, and the npm packages, in a folder that is a static Space."""

import gzip
import hashlib
import json
import shutil
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..prediction import TextClassifier
from ..support.errors import UserError
from ..support.files import replacing_folder, telling_of_disk, write_text
from ..support.heads import SINGLE_LABEL, describe_problem, problem_of
from ..support.models import MODEL_INPUTS
from ..support.onnx_files import PACKAGES
from ..support.packages import check_packages
from ..support.quiet import quiet_transformers
from .graph import write_graph
from .npm import npm_packages

LARGEST = 20_000_000  # bytes of all files
MOST_TOKENS = 64  # of a text: its words take a run of the model each, and each run the longer, the more tokens
_SOURCES = ("index.html", "style.css", "page.mjs", "model.mjs", "words.mjs", "offline.js")
_WASM = "ort-wasm-simd-threaded.wasm"
_VENDOR = {
    "onnxruntime-web/dist/ort.wasm.bundle.min.mjs": "ort.wasm.bundle.min.mjs",
    "@huggingface/tokenizers/dist/tokenizers.min.mjs": "tokenizers.min.mjs",
    "@huggingface/tokenizers/LICENSE": "tokenizers-LICENSE.txt",
}
_MODEL = ("model.onnx", "settings.json", "tokenizer.json", "tokenizer_config.json")
ENTRIES = {*_SOURCES, *_MODEL, "README.md", "files.js", "vendor"}
_SENTENCES = ["A warm, funny film with two leads you could watch for hours.", "Fine.", "It broke after two days."]


def build_space(checkpoint: Path, folder: Path) -> int:
    """Write the page for the classifier in `checkpoint` to `folder`, and return its bytes.

    The folder appears when it is complete; an earlier build of that name stays until then.

    Raises:
        UserError: no classifier that gives one class, an int8 model, a tokenizer that is not BERT's, a page of more than
            20 MB, `folder` holds something else, or a package is missing.
    """
    check_packages(PACKAGES, "the page")
    check_output(folder)
    with quiet_transformers():
        classifier = TextClassifier.from_folder(checkpoint, "cpu")
    settings = _settings(classifier, checkpoint.resolve().name)
    with (
        replacing_folder(folder, "OUTPUT_DIR") as new,
        telling_of_disk("OUTPUT_DIR", folder),
        as_file(files(__package__) / "web") as web,
    ):
        (new / "vendor").mkdir()
        with npm_packages(web) as packages:
            _copy_packages(packages, new / "vendor")
        shutil.copyfile(web / "onnxruntime-LICENSE.txt", new / "vendor" / "onnxruntime-LICENSE.txt")
        for name in _SOURCES:
            shutil.copyfile(web / name, new / name)
        shutil.copyfile(web / "card.md", new / "README.md")
        _write_model(classifier, new, settings["most_tokens"])
        write_text(new / "settings.json", json.dumps(settings) + "\n")
        _write_list(new)
        size = sum(file.stat().st_size for file in new.rglob("*") if file.is_file())
        if size > LARGEST:
            most = f"{LARGEST / 1e6:.0f}"
            raise UserError(f"the page would have {size / 1e6:.1f} MB, and may have {most}: give a smaller model.")
    return size


def check_output(folder: Path) -> None:
    """Raises `UserError` where something stands there that is no earlier build."""
    if folder.is_dir():
        names = {file.name for file in folder.iterdir()}
        if not names or names == ENTRIES:
            return
        raise UserError(f"OUTPUT_DIR {str(folder)!r} is not empty, nor an earlier page; give another folder.")
    if folder.exists() or folder.is_symlink():
        raise UserError(f"OUTPUT_DIR {str(folder)!r} is no folder; give another name.")


def _settings(classifier: TextClassifier, name: str) -> dict[str, Any]:
    """What the page must know of the model."""
    config: Any = classifier.model.config
    if config.int8_weights or config.quantized:
        raise UserError("CHECKPOINT_DIR is an int8 model: give the float one that it comes from.")
    if problem_of(config) != SINGLE_LABEL:
        raise UserError(f"the page is for models that give one class, and CHECKPOINT_DIR is {describe_problem(config)}.")
    tokenizer = classifier.tokenizer
    kind, prefix = _word_pieces(tokenizer)
    if kind != "WordPiece" or tokenizer.num_special_tokens_to_add() != 2:
        raise UserError(f"the page is for BERT's tokenizer (WordPiece), and CHECKPOINT_DIR has {kind}.")
    first, last = map(tokenizer.convert_ids_to_tokens, tokenizer("")["input_ids"])
    return {
        "model": name,
        "labels": classifier.labels,
        "layers": config.n_layers,
        "heads": config.n_heads,
        "gate": config.inhibition == "gate",
        "most_tokens": min(MOST_TOKENS, classifier.max_tokens),
        "prefix": prefix,
        "first": first,
        "last": last,
    }


def _word_pieces(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The kind of its pieces, and how one begins that goes on with a word."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return model["type"], model.get("continuing_subword_prefix", "")


def _write_model(classifier: TextClassifier, folder: Path, tokens: int) -> None:
    """The graph and the tokenizer."""
    batch = classifier.tokenizer(_SENTENCES, padding=True, truncation=True, max_length=tokens, return_tensors="pt")
    inputs = {name: batch[name] for name in MODEL_INPUTS}
    write_graph(classifier.model, inputs, folder / "model.onnx", tokens)
    classifier.tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        if file.name not in ENTRIES:  # other forms of the vocabulary
            file.unlink()


def _copy_packages(packages: Path, folder: Path) -> None:
    """What the page loads of the npm packages. WebAssembly is packed here, since not every host does it."""
    for source, name in _VENDOR.items():
        shutil.copyfile(packages / source, folder / name)
    wasm = (packages / "onnxruntime-web" / "dist" / _WASM).read_bytes()
    (folder / f"{_WASM}.gz").write_bytes(gzip.compress(wasm, 9, mtime=0))


def _write_list(folder: Path) -> None:
    """What the page keeps for when there is no network, and a digest that tells builds apart."""
    digest, names = hashlib.sha256(), []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file():
            digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
            if name not in ("README.md", "offline.js"):
                names.append(name)
    listed = json.dumps(["./", *names])
    write_text(folder / "files.js", f'self.BUILD = "{digest.hexdigest()[:16]}";\nself.FILES = {listed};\n')
