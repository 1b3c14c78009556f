"""The daemon: it watches cameras and tells what it sees, for months.

`python -m runtime.captiond` starts it. One process supervises (HTTP, outputs, scheduling of captions); captures, the
engine and the encoding of pictures each run in a child process of their own and may die without the others.
docs/captiond.md is its reference.
"""
