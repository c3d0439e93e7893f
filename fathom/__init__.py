"""Fathom: raw web pages, code and papers into a reasoning model that can be checked."""

__version__ = "0.1.0"
__all__ = ["__version__"]
