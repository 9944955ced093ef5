"""Makes an inhibitor student from a DistilBERT or BERT checkpoint: shared weights copied, attention scalars new.

A checkpoint of the inhibitor's authors is such a student already: its scalars are copied too (see `authors_format`).
"""

from ..support.models import MODEL_INPUTS
from .hosts import inhibit
from .mapping import bert_to_distilbert
from .options import DTYPES, StudentOptions, fitting_beta_init, fitting_inits
from .student import ConversionReport, student_from
from .writing import convert_checkpoint

__all__ = [
    "DTYPES",
    "MODEL_INPUTS",
    "ConversionReport",
    "StudentOptions",
    "bert_to_distilbert",
    "convert_checkpoint",
    "fitting_beta_init",
    "fitting_inits",
    "inhibit",
    "student_from",
]
