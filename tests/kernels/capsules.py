"""A producer of DLPack capsules made by hand, which counts the calls of its deleter."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import numpy as np

_new = ctypes.pythonapi.PyCapsule_New
_new.argtypes, _new.restype = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p), ctypes.py_object
DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def packed(*fields: tuple[str, int]) -> ctypes.Array[ctypes.c_char]:
    """A C structure from (ctypes letter, value), written with the alignment of struct."""
    letters = "".join(letter for letter, _ in fields)
    return ctypes.create_string_buffer(struct.pack(f"@{letters}", *(value for _, value in fields)))


class Producer:
    """f32 [2, 8] unless told otherwise. streams: what consumers asked for."""

    def __init__(
        self, *, versioned: bool = False, kind: int = 1, code: int = 2, bits: int = 32, lanes: int = 1,
        shape: tuple[int, ...] = (2, 8), strides: tuple[int, ...] | None = None, byte_offset: int = 0,
        version: tuple[int, int] = (1, 0), flags: int = 0, old_signature: bool = False,
    ) -> None:  # fmt: skip
        self.deleted = 0
        self.streams: list[int | None] = []
        self.capsule: Any = None
        self._kind, self._versioned, self._old = kind, versioned, old_signature
        store = np.zeros(4096 + 16, np.uint8)
        self.ptr = -(-store.ctypes.data // 16) * 16
        self._delete = DELETER(self._count)
        sizes = (ctypes.c_int64 * len(shape))(*shape)
        steps = None if strides is None else (ctypes.c_int64 * len(shape))(*strides)
        tensor = [
            ("P", self.ptr), ("i", kind), ("i", 0), ("i", len(shape)), ("B", code), ("B", bits), ("H", lanes),
            ("P", ctypes.addressof(sizes)), ("P", 0 if steps is None else ctypes.addressof(steps)), ("Q", byte_offset),
        ]  # fmt: skip
        deleter = ctypes.cast(self._delete, ctypes.c_void_p).value or 0
        if versioned:
            fields = [("I", version[0]), ("I", version[1]), ("P", 0), ("P", deleter), ("Q", flags), *tensor]
        else:
            fields = [*tensor, ("P", 0), ("P", deleter)]
        self._managed = packed(*fields)
        self._kept = (store, sizes, steps)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._kind, 0

    def __dlpack__(self, stream: int | None = None, **later: Any) -> Any:
        if self._old and later:
            raise TypeError("__dlpack__() got an unexpected keyword argument")
        self.streams.append(stream)
        if self.capsule is not None:
            return self.capsule
        name = b"dltensor_versioned" if self._versioned else b"dltensor"
        return _new(ctypes.addressof(self._managed), self._name(name), None)

    def _name(self, name: bytes) -> bytes:
        self._kept = (*self._kept, name)  # a capsule keeps the pointer alone
        return name

    def _count(self, managed: int) -> None:
        assert managed == ctypes.addressof(self._managed)
        self.deleted += 1
