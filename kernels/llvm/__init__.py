"""Writes LLVM IR, and compiles, keeps and runs it; nothing here knows of attention."""
