"""`python -m inhibidistilbert`, and so what `torchrun -m` and `accelerate launch -m` start."""

from .cli import main

if __name__ == "__main__":
    main()
