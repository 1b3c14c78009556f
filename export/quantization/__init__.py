"""Quantisation of a checkpoint's decoder, layer by layer: what ``python -m export.quantize`` does."""
