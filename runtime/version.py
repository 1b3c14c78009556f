"""The version of the distribution, written once; setup.py, bundles and the tools read it from here."""

from __future__ import annotations

__version__ = "0.1.0"
