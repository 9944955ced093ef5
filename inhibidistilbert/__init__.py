"""DistilBERT with inhibitor attention: the operator, the models and the tools to train and publish them.

Importing the package registers the models with transformers' Auto classes.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

if Path(__file__).with_name("kernels").is_file():
    raise ImportError("This clone has files in place of symbolic links: clone again with `git clone -c core.symlinks=true`.")

from .kernels.attention import inhibitor_attention
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
from .registration import register_auto_classes

register_auto_classes()

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
    "inhibitor_attention",
    "quantize",
]
