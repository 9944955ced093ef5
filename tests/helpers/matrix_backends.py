"""The backends for long lists of cases."""

import pytest

from inhibidistilbert.testing.reference import BACKENDS

# Triton's interpreter takes seconds a case: `make test` has test_triton.py instead.
MATRIX_BACKENDS = [pytest.param(name, marks=pytest.mark.slow if name == "triton" else ()) for name in BACKENDS]
