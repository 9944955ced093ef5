"""What the tests and `benchmark gpu` both need, as torch.testing is to torch; without pytest.

- `reference`: the operator's judge in float64, and the drawing of inputs.
- `matrix`, `covering`: the cases that the Triton kernels are held to.
- `device_checks`: what they must hold to on a GPU, as functions by name.
"""
