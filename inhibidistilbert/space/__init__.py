"""A page that runs a classifier in the browser: a static Space of the Hub, with no server."""

from .building import build_space

__all__ = ["build_space"]
