"""The distillation study: what it compares, the data it is trained on, and its runs. `docs/study.md` tells the results."""
