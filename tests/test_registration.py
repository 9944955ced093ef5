"""The Auto classes know the models, in whatever order things are imported."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import inhibidistilbert

{statement}
from transformers import AutoModel
from inhibidistilbert import InhibiDistilBertConfig, InhibiDistilBertModel

config = InhibiDistilBertConfig(vocab_size=8, dim=4, hidden_dim=4, n_layers=1, n_heads=1)
assert type(AutoModel.from_config(config)) is InhibiDistilBertModel
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("inhibidistilbert")]
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import transformers.modeling_layers",  # which imports the Auto classes before it has what our models need
        *(
            pytest.param(statement, marks=pytest.mark.slow)
            for statement in (
                "from transformers import AutoConfig",
                "from transformers import pipeline",
                "import transformers.modeling_utils",
                "from inhibidistilbert import InhibiDistilBertForMaskedLM",
                "from inhibidistilbert.modeling import configuration_inhibidistilbert",
                "from inhibidistilbert import inhibitor_attention",
            )
        ),
    ],
)
def test_whatever_is_imported_first(statement):
    subprocess.run([sys.executable, "-c", PROGRAM.format(statement=statement)], check=True)
