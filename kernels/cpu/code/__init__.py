"""Generates the code of the backend "cpu", as LLVM IR."""
