"""Turns a checkpoint into a bundle. Start at `export.build_engines`, the command; `export.build` is what it runs."""
