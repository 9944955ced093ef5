"""transformers' own tests for models, run on students in the classes of GPT-2, as `test_transformers_suite.py` does.

Each is one case. It passes, skips itself as it would for GPT-2, or is left out below with a reason.
"""

import unittest

import pytest
import transformers
from transformers import GPT2Config

from inhibidistilbert import inhibit
from inhibidistilbert.modeling.modeling_inhibited import inhibited_class
from tests.helpers.transformers_suite import SuiteUnavailable, load_suite

CLASSES = ("GPT2Model", "GPT2LMHeadModel", "GPT2ForSequenceClassification", "GPT2ForTokenClassification")
# Parts of names of tests, and why a student cannot pass them.
LEFT_OUT = {
    "flash": "a kernel of softmax attention",
    "flex": "a kernel of softmax attention",
    "sdpa": "a kernel of softmax attention",
    "test_can_set_attention_dynamically": "a kernel of softmax attention",
    "test_attention_outputs": 'sets attn_implementation="eager", which is softmax attention; tests/modeling has the scores',
    "test_retain_grad_hidden_states_attentions": 'sets attn_implementation="eager", which is softmax attention',
    "test_generation_tester_mixin_inheritance": "the source distribution has no tests of generation; tests/modeling has",
    "test_load_with_mismatched_shapes": "loads the folder without trusting its code, which is refused",
}
SIZES = {"vocab_size": 99, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 37}
TOKENS = {"bos_token_id": 98, "eos_token_id": 98, "pad_token_id": 98}


class ModelTester:
    """Tiny models and inputs; the attributes are those that transformers' tests read."""

    batch_size, seq_length, is_training = 13, 7, True
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def get_config(self) -> GPT2Config:
        config = GPT2Config(**SIZES, **TOKENS)
        config.inhibitor = FORM
        return config

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.seq_length]
        ids, mask = suite.modeling.ids_tensor(shape, 98), suite.modeling.random_attention_mask(shape)
        return self.get_config(), {"input_ids": ids, "attention_mask": mask}


TESTS: list[str] = []
try:
    suite = load_suite()
except SuiteUnavailable:
    pass  # `test_transformers_suite.py` says so
else:
    FORM = inhibit(transformers.GPT2Model(GPT2Config(**SIZES, **TOKENS))).config.inhibitor

    class StudentTest(suite.modeling.ModelTesterMixin, unittest.TestCase):
        __test__ = False
        all_model_classes = tuple(inhibited_class(getattr(transformers, name)) for name in CLASSES)

        def setUp(self):
            self.model_tester = ModelTester()

    TESTS = [
        name for name in unittest.TestLoader().getTestCaseNames(StudentTest) if not any(part in name for part in LEFT_OUT)
    ]


def skip_reason(case: unittest.TestCase) -> str | None:
    try:
        case.debug()
    except unittest.SkipTest as skip:
        return str(skip)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTS)
def test_passes_or_skips_itself(name: str) -> None:
    reason = skip_reason(StudentTest(name))
    if reason is not None:
        pytest.skip(reason)
