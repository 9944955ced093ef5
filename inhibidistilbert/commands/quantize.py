"""`inhibidistilbert quantize`: an int8 checkpoint of a checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from ..support.errors import UserError


def quantize(
    checkpoint_dir: Annotated[Path, typer.Argument(help="Folder written by save_pretrained or `distill`.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Labelled texts, columns text and label, to score both models on.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the sizes and scores as one JSON object.")] = False,
) -> None:
    """Write an int8 copy of a checkpoint, for inference, and tell the size before and after.

    With --data both are scored as `evaluate` does it, and eval_results.json is written into the copy. The folder's README.md
    goes along; results of the original do not.
    """
    if output_dir.exists():
        raise UserError(f"OUTPUT_DIR {str(output_dir)!r} exists already; give another name or remove it.")
    if data is not None and not data.is_file():
        raise UserError(f"--data {str(data)!r} is not a file.")

    import inhibidistilbert

    from ..evaluation.options import Evaluation
    from ..evaluation.pipeline import evaluate
    from ..evaluation.tasks import OWN_FILES
    from ..support.files import replacing_folder
    from ..support.heads import problem_of
    from ..support.models import has_tokenizer, load_config, load_model, load_tokenizer
    from ..support.quiet import quiet_transformers
    from .evaluate import as_objects, print_results

    where = f"CHECKPOINT_DIR {str(checkpoint_dir)!r}"
    if not checkpoint_dir.is_dir():
        raise UserError(f"{where} is not a folder; give one written by save_pretrained.")
    config = load_config(checkpoint_dir, where)
    head = (getattr(config, "architectures", None) or [""])[0]
    if head not in inhibidistilbert.__all__:
        raise UserError(f"{where} must hold an InhibiDistilBERT model, got {head or 'a model without a name'!r}.")
    model = inhibidistilbert.quantize(load_model(getattr(inhibidistilbert, head), checkpoint_dir, where).model)
    with replacing_folder(output_dir, "OUTPUT_DIR") as folder, quiet_transformers():
        model.save_pretrained(folder)
        if has_tokenizer(checkpoint_dir):
            load_tokenizer(checkpoint_dir, where).save_pretrained(folder)
        if (checkpoint_dir / "README.md").is_file():
            shutil.copyfile(checkpoint_dir / "README.md", folder / "README.md")
    sizes = [sum(file.stat().st_size for file in each.glob("*.safetensors")) for each in (checkpoint_dir, output_dir)]
    results = []
    if data is not None:
        both = [str(output_dir), str(checkpoint_dir)]
        results = evaluate(Evaluation(both, OWN_FILES[problem_of(config)], data=[str(data)]))
    if as_json:
        print(json.dumps({"bytes": dict(zip(("before", "after"), sizes, strict=True)), "results": as_objects(results)}))
        return
    before, after = (f"{size / 1e6:.1f} MB" for size in sizes)
    print(f"weights: {before} before, {after} after; written to {output_dir}")
    print_results(results)
