"""Measurements of the kernels and the models: instruction counts without a GPU, times on GPUs and CPUs."""
