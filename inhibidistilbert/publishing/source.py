"""Whether a folder holds a checkpoint of this kind of model."""

from pathlib import Path
from typing import Any

from ..support.errors import UserError
from ..support.files import read_json
from ..support.models import check_fields, check_model_type


def check_source(folder: Path) -> dict[str, Any]:
    """The configuration of the checkpoint in `folder`.

    Raises:
        UserError: not one of this kind of model, or with a field that is none of its values.
    """
    if not (folder / "config.json").is_file():
        raise UserError("CHECKPOINT_DIR lacks config.json; give a folder written by save_pretrained.")
    config = read_json(folder / "config.json", "config.json")
    check_model_type(config, "CHECKPOINT_DIR")
    check_fields(config, "CHECKPOINT_DIR: config.json")
    return config
