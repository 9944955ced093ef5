"""Makes transformers' Auto classes and pipelines know the models, without `trust_remote_code`.

transformers and torch take seconds to import. So the models wait until something else has imported the Auto classes.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

AUTO_CLASSES = "transformers.models.auto.configuration_auto"  # the first of their modules: the others import it


def register_auto_classes() -> None:
    """Register the configuration, every model class and DistilBERT's tokenizer under the model type."""
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    from .modeling import configuration_inhibidistilbert, modeling_inhibidistilbert
    from .modeling.sources import AUTO_MAP

    config_class = configuration_inhibidistilbert.InhibiDistilBertConfig
    transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for auto_class, reference in AUTO_MAP.items():
        if auto_class != "AutoConfig":
            model_class = getattr(modeling_inhibidistilbert, reference.rpartition(".")[2])
            getattr(transformers, auto_class).register(config_class, model_class, exist_ok=True)
    TOKENIZER_MAPPING_NAMES.setdefault(config_class.model_type, TOKENIZER_MAPPING_NAMES["distilbert"])


def register_when_imported() -> None:
    """Register the models now if the Auto classes are imported, otherwise as soon as they are."""
    if AUTO_CLASSES in sys.modules:
        register_auto_classes()
    else:
        sys.meta_path.insert(0, _Registrar())


class _Registrar(MetaPathFinder):
    """Registers the models when an import of transformers' or our modules has ended and has brought the Auto classes.

    Not earlier: modules that the models need import the Auto classes before they are complete themselves.
    """

    def __init__(self) -> None:
        self._thread = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in ("transformers", __package__):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self._exec(run, module)  # type: ignore[method-assign]
        return spec

    def _exec(self, run: Callable[[ModuleType], None], module: ModuleType) -> None:
        if getattr(self._thread, "imports", False):  # a module within another's import
            run(module)
            return
        self._thread.imports = True
        try:
            run(module)
            if AUTO_CLASSES in sys.modules and self in sys.meta_path:
                register_auto_classes()
                with suppress(ValueError):  # another thread was faster
                    sys.meta_path.remove(self)
        finally:
            self._thread.imports = False
