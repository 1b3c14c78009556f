"""One SHA-256 over all integers of a model, whatever layout they are stored in."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from kernels.packing.integers import IntWeight


class WeightDigest:
    """Digest of named integer weights, fed matrix by matrix and, within one, in blocks of rows.

    Canonical: per matrix the SHA-256 of q (a byte a value, row-major), of zeros and of scales (f16 little-endian); the
    digest is the SHA-256 over one JSON line per matrix in the order of feeding:
    [name, N, K, group_size, q, zeros, scales], and the bits at its end where they are not four.
    How the rows were divided into blocks does not change it.
    """

    def __init__(self) -> None:
        self._total = hashlib.sha256()
        self._name: str | None = None
        self._names: set[str] = set()
        self._rows = 0
        self._width = (0, 0)
        self._bits = 4
        self._parts = (hashlib.sha256(), hashlib.sha256(), hashlib.sha256())

    def add(self, name: str, rows: IntWeight) -> None:
        """Appends rows to the matrix ``name``; a new name closes the one before. ValueError when a name comes back."""
        width = (rows.shape[1], rows.group_size)
        if name != self._name:
            if name in self._names:
                raise ValueError(f"matrix {name!r} was closed already")
            self._close()
            self._name, self._width, self._bits = name, width, rows.bits
            self._names.add(name)
            self._parts = (hashlib.sha256(), hashlib.sha256(), hashlib.sha256())
        elif (width, rows.bits) != (self._width, self._bits):
            found, before = (*width, rows.bits), (*self._width, self._bits)
            raise ValueError(f"{name!r}: rows of (K, group, bits) {found} after rows of {before}")
        self._rows += rows.shape[0]
        for part, array in zip(self._parts, (rows.q, rows.zeros, rows.scales.astype("<f2", copy=False)), strict=True):
            part.update(np.ascontiguousarray(array).data)

    def hexdigest(self) -> str:
        """The digest in hex; the last matrix is closed by it."""
        self._close()
        return self._total.hexdigest()

    def _close(self) -> None:
        if self._name is not None:
            record = [self._name, self._rows, *self._width, *(part.hexdigest() for part in self._parts)]
            if self._bits != 4:
                record.append(self._bits)
            self._total.update(json.dumps(record, ensure_ascii=True).encode() + b"\n")
        self._name, self._rows = None, 0
