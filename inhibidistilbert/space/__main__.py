"""`python -m inhibidistilbert.space CHECKPOINT_DIR OUTPUT_DIR`: build the page."""

import sys
from pathlib import Path

from ..support.errors import UserError
from .building import build_space

if len(sys.argv) != 3:
    sys.exit("usage: python -m inhibidistilbert.space CHECKPOINT_DIR OUTPUT_DIR")
try:
    size = build_space(Path(sys.argv[1]), Path(sys.argv[2]))
except UserError as error:
    sys.exit(f"error: {error}")
print(f"written to {sys.argv[2]}, {size / 1e6:.1f} MB")
