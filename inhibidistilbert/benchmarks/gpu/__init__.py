"""Everything that is measured on a GPU, in one run: `python -m inhibidistilbert.benchmarks.gpu`, `make gpu`."""
