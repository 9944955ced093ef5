"""The backend "cpu": what calls the compiled code."""
