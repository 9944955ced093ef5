"""How good a model is: metrics, tasks, comparisons of several models."""
