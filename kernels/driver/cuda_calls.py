"""Calling cuda.bindings.driver, checked: each call's code becomes an error of ours."""

from __future__ import annotations

import importlib
from typing import Any

from kernels.driver.cuda_errors import NOT_READY, driver_error
from kernels.driver.handles import Handles
from kernels.errors import NoDeviceError, StickyError

INSTALL = "pip install cuda-bindings"


def import_bindings() -> Any:
    """Return the module cuda.bindings.driver; NoDeviceError where it is not installed."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise NoDeviceError(f"cuda.bindings.driver cannot be imported: {error}", hint=INSTALL) from error


class Calls:
    """The functions of cuda.bindings.driver for one device, by name; a sticky error marks the device as lost."""

    def __init__(self, library: Any, handles: Handles) -> None:
        self.library = library
        self._handles = handles

    def __call__(self, name: str, *args: Any, requested: int | None = None) -> Any:
        """Call it and return what follows the code: None, one value, or a tuple.

        requested: bytes of an allocation, for the error. Raises the error of `cuda_errors.driver_error`.
        """
        code, *values = getattr(self.library, name)(*args)
        if int(code) != 0:
            error = driver_error(name, int(code), self._text(code), requested=requested)
            if isinstance(error, StickyError):
                self._handles.lost = error
            raise error
        return values[0] if len(values) == 1 else tuple(values) or None

    def ready(self, name: str, *args: Any) -> bool:
        """Call a query: whether the work is done."""
        code = getattr(self.library, name)(*args)[0]
        if int(code) == NOT_READY:
            return False
        if int(code) != 0:
            self(name, *args)
        return True

    def initialize(self) -> None:
        """Load the driver; NoDeviceError when there is none, or it finds no device."""
        try:
            code = self.library.cuInit(0)[0]
        except RuntimeError as error:  # the package is there, libcuda is not
            raise NoDeviceError(f"no CUDA driver: {error}", call="cuInit", hint="nvidia-smi") from error
        if int(code) != 0:
            raise NoDeviceError(
                f"cuInit failed: {self._text(code)} ({int(code)})", call="cuInit", code=int(code), hint="nvidia-smi"
            )

    def _text(self, code: Any) -> str:
        failed, text = self.library.cuGetErrorString(code)
        return text.decode(errors="replace") if int(failed) == 0 and text else "unknown error"
