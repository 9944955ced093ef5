"""Research that the package does not need: it is not in the wheel."""
