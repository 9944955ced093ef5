"""The published sizes."""

from importlib.resources import as_file, files

from ..modeling.configuration_inhibidistilbert import InhibiDistilBertConfig


def published_sizes() -> list[str]:
    """Names of the configurations in `hub_configs`."""
    root = files("inhibidistilbert") / "hub_configs"
    return sorted(entry.name for entry in root.iterdir() if (entry / "config.json").is_file())


def size_config(name: str) -> InhibiDistilBertConfig:
    """The configuration of a published size."""
    with as_file(files("inhibidistilbert") / "hub_configs" / name) as folder:
        return InhibiDistilBertConfig.from_pretrained(folder)
