"""Launchers: typed functions that check shapes and limits, pick the compiled entry, and launch it."""
