"""Bugs planted in the kernels one at a time, to see which check of the emulator catches each."""
