"""The context that the pycuda backend works in, and pycuda's errors as ours."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kernels.driver.cuda_errors import code_of, driver_error
from kernels.driver.handles import Handles
from kernels.errors import NoDeviceError, StickyError


class PycudaContext:
    """The application's current context when it is on the device asked for, else the primary one, retained."""

    def __init__(self, driver: Any, handles: Handles, ordinal: int | None) -> None:
        self._driver = driver
        self._handles = handles
        with self._typed(None):
            driver.init()
            current = driver.Context.get_current()
            wanted = None if ordinal is None else driver.Device(ordinal)
            if current is not None and wanted in (None, driver.Context.get_device()):
                self.device, self._context, self._retained = driver.Context.get_device(), current, False
            else:
                self.device = driver.Device(0) if wanted is None else wanted
                self._context, self._retained = self.device.retain_primary_context(), True

    @contextmanager
    def active(self, requested: int | None) -> Iterator[None]:
        """Make it current for a block unless it is; pycuda's errors inside the block become ours.

        requested: bytes that the block allocates.
        """
        with self._typed(requested):
            current = self._driver.Context.get_current()
            if current is not None and current == self._context:
                yield
                return
            self._context.push()
            try:
                yield
            except BaseException:
                with suppress(self._driver.Error):  # what failed in the block says more
                    self._driver.Context.pop()
                raise
            self._driver.Context.pop()

    def close(self) -> None:
        """Give a retained context back; the application's is left alone."""
        if not self._retained:
            return
        self._retained = False
        library = driver_library()
        before = _current(library)
        with self._typed(None):
            self._context.detach()
        # pycuda pushes a context that is not current before it releases it, and for a primary one, which a release
        # does not pop, never pops it again: the application would find it current.
        if _current(library) != before:
            library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    @contextmanager
    def _typed(self, requested: int | None) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            call, _, text = str(error).partition(" failed: ")
            typed = driver_error(call, code_of(text), text, requested=requested)
            if isinstance(typed, StickyError):
                self._handles.lost = typed
            raise typed from error


def driver_library() -> Any:
    """Return libcuda, which pycuda has loaded already."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise NoDeviceError(f"libcuda.so.1 cannot be loaded: {error}", hint="nvidia-smi") from error


def _current(library: Any) -> int:
    context = ctypes.c_void_p()
    library.cuCtxGetCurrent(ctypes.byref(context))
    return context.value or 0
