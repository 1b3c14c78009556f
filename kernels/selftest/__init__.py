"""Known inputs through every kernel of this installation on this device: ``python -m kernels.selftest``."""
