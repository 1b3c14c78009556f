"""Launches with known inputs and answers, one module per source file."""
