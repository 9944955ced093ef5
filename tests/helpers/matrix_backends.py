"""The backends for long lists of cases."""

import pytest

from inhibidistilbert.testing.reference import BACKENDS, BEYOND_BACKENDS

# Triton's interpreter takes seconds a case: `make test` has test_triton.py instead.
MATRIX_BACKENDS, FORM_BACKENDS = (
    [pytest.param(name, marks=pytest.mark.slow if name == "triton" else ()) for name in names]
    for names in (BACKENDS, BEYOND_BACKENDS)
)
