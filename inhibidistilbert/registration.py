"""Makes transformers' Auto classes and pipelines know the models, without `trust_remote_code`."""

import transformers
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from .modeling import configuration_inhibidistilbert, modeling_inhibidistilbert
from .modeling.sources import AUTO_MAP


def register_auto_classes() -> None:
    """Register the configuration, every model class and DistilBERT's tokenizer under the model type."""
    config_class = configuration_inhibidistilbert.InhibiDistilBertConfig
    transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for auto_class, reference in AUTO_MAP.items():
        if auto_class != "AutoConfig":
            model_class = getattr(modeling_inhibidistilbert, reference.rpartition(".")[2])
            getattr(transformers, auto_class).register(config_class, model_class, exist_ok=True)
    TOKENIZER_MAPPING_NAMES.setdefault(config_class.model_type, TOKENIZER_MAPPING_NAMES["distilbert"])
