"""transformers' own tests for models, run on the six InhibiDistilBERT classes.

`transformers_suite.py` fetches them in the version that is installed. Each is one case here: it passes, or it skips itself
and stands in `skips.json` with a reason; a new skip fails, and so does a listed one that no longer happens. The list has
two parts. Tests under `as_distilbert` are skipped for transformers' DistilBERT too, which is tried at the same time. Those
under `softmax_kernels` run there, and compare or choose kernels of softmax attention, which these models do not have.

The tests of pipelines and of generation are not among them: the first download their models, the second need a decoder.
"""

import json
import os
import re
import unittest
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
import transformers
from packaging.version import Version
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto

import inhibidistilbert
from inhibidistilbert.modeling import modeling_inhibidistilbert
from tests.helpers.slow import slow_but_first
from tests.helpers.transformers_suite import Suite, SuiteUnavailable, load_suite

# The class of each task, and the table in which the suite looks up which labels a class takes.
TASKS = {
    "Model": "MODEL_MAPPING_NAMES",
    "ForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "ForMultipleChoice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
    "ForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "ForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "ForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
}
SKIPS = json.loads(Path(__file__).with_name("skips.json").read_text(encoding="utf-8"))


def listed(part: str) -> list[str]:
    """The tests in a part of `skips.json`, which groups them by reason."""
    return [name for names in SKIPS[part].values() for name in names]


SOFTMAX_KERNELS, AS_DISTILBERT = listed("softmax_kernels"), listed("as_distilbert")
if Version(transformers.__version__) < Version("5.22"):
    AS_DISTILBERT += listed("as_distilbert_before_5.22")
LISTED = {*SOFTMAX_KERNELS, *AS_DISTILBERT}
LISTED_VERSION = transformers.__version__ == SKIPS["transformers"]


class ModelTester:
    """Tiny models and inputs; the attributes are those that transformers' tests read."""

    batch_size, seq_length, num_choices, is_training = 13, 7, 4, True
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, suite: Suite, config_class: type[PreTrainedConfig]):
        self.suite, self.config_class = suite, config_class

    def get_config(self) -> PreTrainedConfig:
        return self.config_class(
            vocab_size=99,
            dim=self.hidden_size,
            n_layers=self.num_hidden_layers,
            n_heads=self.num_attention_heads,
            hidden_dim=37,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict]:
        shape = [self.batch_size, self.seq_length]
        inputs = {
            "input_ids": self.suite.modeling.ids_tensor(shape, 99),
            "attention_mask": self.suite.modeling.random_attention_mask(shape),
        }
        return self.get_config(), inputs


def suite_for(suite: Suite, family: str, source: object) -> type[unittest.TestCase]:
    """The test case that runs `suite` on the classes `<family>Model`, `<family>ForMaskedLM`, … of the module `source`."""
    config_class = getattr(source, f"{family}Config")

    class ModelTest(suite.modeling.ModelTesterMixin, unittest.TestCase):
        all_model_classes = tuple(getattr(source, family + task) for task in TASKS)
        test_resize_position_embeddings = True
        # Without this, skipped for whatever names no year from 2023 on.
        test_can_init_all_missing_weights_before_2023 = True

        def setUp(self):
            self.model_tester = ModelTester(suite, config_class)

        def test_config(self):
            suite.configuration.ConfigTester(self, config_class=config_class, dim=36).run_common_tests()

    return ModelTest


def skip_reason(case: unittest.TestCase) -> str | None:
    """Run a test, letting its errors out: None, or why it skipped itself."""
    try:
        case.debug()
    except unittest.SkipTest as skip:
        return str(skip)
    return None


try:
    suite, unavailable = load_suite(), ""
except SuiteUnavailable as error:
    suite, unavailable = None, str(error)

if suite is None:
    TESTS = []
else:
    InhibiDistilBertTest = suite_for(suite, "InhibiDistilBert", inhibidistilbert)
    DistilBertTest = suite_for(suite, "DistilBert", transformers)
    TESTS = unittest.TestLoader().getTestCaseNames(InhibiDistilBertTest)
    # Run through the cases below only: pytest must not collect the classes as well.
    InhibiDistilBertTest.__test__ = DistilBertTest.__test__ = False


@pytest.fixture(autouse=True, scope="module")
def known_to_the_suite() -> Iterator[None]:
    """Enter the classes into transformers' tables of tasks while these tests run."""
    with ExitStack() as stack:
        for task, table in TASKS.items():
            entry = {"inhibidistilbert": f"InhibiDistilBert{task}"}
            stack.enter_context(mock.patch.dict(getattr(modeling_auto, table), entry))
        yield


def test_the_suite_is_at_hand() -> None:
    if unavailable and not os.environ.get("CI"):
        pytest.skip(unavailable)
    assert not unavailable


def kind(name: str) -> list[str]:
    """Of a test, which the suite may have once for each dtype, side of the padding and the like, numbered."""
    return [re.sub(r"_\d\d_.*", "", name)]


@pytest.mark.parametrize("name", slow_but_first([name for name in TESTS if name not in LISTED], kind))
def test_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "gradient_checkpointing" in name:
        # These put a hook on a layer for the second of two runs alone. A layer that is watched gets padding, and so draws
        # other numbers for its dropout.
        monkeypatch.setattr(modeling_inhibidistilbert, "without_padding", lambda *_: None)
    reason = skip_reason(InhibiDistilBertTest(name))
    # Another version may have tests that the list does not know: they may skip themselves where DistilBERT's do.
    if reason is None or (not LISTED_VERSION and skip_reason(DistilBertTest(name)) is not None):
        return
    pytest.fail(f"a skip that skips.json does not list: {reason}")


@pytest.mark.parametrize("name", slow_but_first([name for name in TESTS if name in LISTED], kind))
def test_is_skipped_as_listed(name: str) -> None:
    reason = skip_reason(InhibiDistilBertTest(name))
    assert reason is not None, "no longer skipped: take it off skips.json"
    if skip_reason(DistilBertTest(name)) is not None:
        assert name in AS_DISTILBERT
    else:
        assert name in SOFTMAX_KERNELS
        assert re.search("sdpa|flash|flex", reason, re.IGNORECASE), f"not about a softmax kernel: {reason}"


@pytest.mark.skipif(suite is None, reason=unavailable)
def test_the_list_names_each_test_once_and_no_test_of_the_past() -> None:
    assert len(LISTED) == len(SOFTMAX_KERNELS) + len(AS_DISTILBERT)
    if LISTED_VERSION:
        assert set(TESTS) >= LISTED
