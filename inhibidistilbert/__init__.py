"""DistilBERT with inhibitor attention: the operator, the models and the tools to train and publish them.

Importing the package registers the models with transformers' Auto classes. It is quick: torch and transformers are imported
when something that needs them is asked for.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if Path(__file__).with_name("kernels").is_file():
    raise ImportError("This clone has files in place of symbolic links: clone again with `git clone -c core.symlinks=true`.")

from .registration import register_when_imported

if TYPE_CHECKING:
    from .conversion.hosts import inhibit
    from .kernels.attention import inhibitor_attention
    from .kernels.packed import packed_inhibitor_attention
    from .modeling.configuration_inhibidistilbert import InhibiDistilBertConfig
    from .modeling.modeling_inhibidistilbert import (
        InhibiDistilBertForMaskedLM,
        InhibiDistilBertForMultipleChoice,
        InhibiDistilBertForQuestionAnswering,
        InhibiDistilBertForSequenceClassification,
        InhibiDistilBertForTokenClassification,
        InhibiDistilBertModel,
    )
    from .quantization import quantize

register_when_imported()

try:
    __version__ = version("inhibidistilbert")
except PackageNotFoundError:  # in a clone that is not installed
    __version__ = "0+unknown"

__all__ = [
    "InhibiDistilBertConfig",
    "InhibiDistilBertForMaskedLM",
    "InhibiDistilBertForMultipleChoice",
    "InhibiDistilBertForQuestionAnswering",
    "InhibiDistilBertForSequenceClassification",
    "InhibiDistilBertForTokenClassification",
    "InhibiDistilBertModel",
    "__version__",
    "inhibit",
    "inhibitor_attention",
    "packed_inhibitor_attention",
    "quantize",
]


def __getattr__(name: str) -> Any:
    """What `__all__` names, imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = {
        "inhibit": ".conversion.hosts",
        "inhibitor_attention": ".kernels.attention",
        "packed_inhibitor_attention": ".kernels.packed",
        "quantize": ".quantization",
        "InhibiDistilBertConfig": ".modeling.configuration_inhibidistilbert",
    }
    globals()[name] = value = getattr(import_module(homes.get(name, ".modeling.modeling_inhibidistilbert"), __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
