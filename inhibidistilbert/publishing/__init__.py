"""Takes a checkpoint, or the kernel, to the Hub: assembled afresh, checked, planned, sent, and loaded from there."""
