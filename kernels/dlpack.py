"""Taking an array over the DLPack protocol: its capsule is consumed, and its deleter called when nobody uses it.

Source: dlpack.h of DLPack 1.0; unversioned capsules (before 1.0) are taken as well.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from kernels.arrays import DType
from kernels.errors import ArrayError

CPU = 1
GPUS = frozenset({2, 13})  # CUDA, CUDA managed
MAJOR = 1
READ_ONLY = 1

# (code, bits): codes are 0 int, 1 uint, 2 float, 4 bfloat
TYPES: dict[tuple[int, int], DType] = {
    (2, 16): "f16",
    (4, 16): "bf16",
    (2, 32): "f32",
    (0, 8): "i8",
    (1, 8): "u8",
    (0, 32): "i32",
    (1, 32): "u32",
    (1, 64): "u64",
}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


# Called with the interpreter's lock held, as a capsule's destructor calls it.
_Deleter = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


LEGACY_NAME, VERSIONED_NAME = b"dltensor", b"dltensor_versioned"
# A capsule keeps the pointer to its name: these live as long as the module.
USED_NAMES = {LEGACY_NAME: b"used_dltensor", VERSIONED_NAME: b"used_dltensor_versioned"}

_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.argtypes, _is_valid.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.argtypes, _get_pointer.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes, _set_name.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int


class DlpackOwner:
    """Keeps the producer's memory alive, until it goes itself."""

    def __init__(self, address: int, deleter: int | None) -> None:
        self._address = address
        self._deleter = deleter

    def release(self) -> None:
        """Tell the producer that the memory is not used any more; harmless when repeated."""
        deleter, self._deleter = self._deleter, None
        if deleter:
            _Deleter(deleter)(self._address)

    def __del__(self) -> None:
        self.release()


@dataclass(frozen=True, slots=True)
class DlpackTensor:
    """What a capsule says; strides in elements, None when contiguous."""

    ptr: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: DType
    read_only: bool
    owner: DlpackOwner


def take_dlpack(value: Any, stream: int | None) -> DlpackTensor:
    """Consume the capsule of ``value.__dlpack__``; ``stream``: the consumer's, in DLPack's numbers (1: the default).

    Raises ArrayError for a dtype that kernels do not know, or a version after 1.
    """
    capsule = _capsule(value, stream)
    for name in (VERSIONED_NAME, LEGACY_NAME):
        if _is_valid(capsule, name):
            return _taken(capsule, name)
    raise ArrayError(f"the {type(value).__name__} gave a capsule that is not DLPack's, or one that was used before")


def _capsule(value: Any, stream: int | None) -> Any:
    try:
        try:
            return value.__dlpack__(stream=stream, max_version=(MAJOR, 0))
        except TypeError:  # a producer from before DLPack 1.0
            return value.__dlpack__(stream=stream)
    except (BufferError, RuntimeError) as error:  # a tensor that needs gradients, a read-only array, …
        raise ArrayError(f"the {type(value).__name__} cannot be shared: {error}") from error


def _taken(capsule: Any, name: bytes) -> DlpackTensor:
    address = int(_get_pointer(capsule, name))
    versioned = name == VERSIONED_NAME
    managed: Any = (_Versioned if versioned else _Managed).from_address(address)
    owner = DlpackOwner(address, managed.deleter)
    _set_name(capsule, USED_NAMES[name])
    if versioned and managed.major != MAJOR:
        raise ArrayError(f"a tensor of DLPack {managed.major}.{managed.minor}, known is {MAJOR}.x")
    tensor = managed.tensor
    dtype = TYPES.get((tensor.code, tensor.bits))
    if dtype is None or tensor.lanes != 1:
        raise ArrayError(
            f"a tensor of DLPack's type code {tensor.code} with {tensor.bits} bits and {tensor.lanes} lanes,"
            f" kernels know {', '.join(sorted(TYPES.values()))}"
        )
    shape = tuple(tensor.shape[: tensor.ndim]) if tensor.ndim else ()
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides and tensor.ndim else None
    ptr = (tensor.data or 0) + tensor.byte_offset
    read_only = versioned and bool(managed.flags & READ_ONLY)
    return DlpackTensor(ptr, shape, strides, dtype, read_only, owner)
