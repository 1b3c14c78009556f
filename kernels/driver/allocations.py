"""Memory that a backend has allocated: what is the same whichever call it came from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kernels.driver.handles import Handle, Handles


class Allocation(Handle):
    """Device memory at ``ptr``."""

    def __init__(self, owner: Handles, release: Callable[[], object], ptr: int, nbytes: int) -> None:
        self._ptr, self._nbytes = ptr, nbytes
        super().__init__(owner, "memory", release)

    @property
    def ptr(self) -> int:
        self.require_open()
        return self._ptr

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def free(self) -> None:
        self.close()


class PinnedAllocation(Handle):
    """Page-locked host memory, as the u8 ``array``.

    device_address: asks for the address that a device has it under; None when it was not asked to be mapped.
    """

    def __init__(
        self,
        owner: Handles,
        release: Callable[[], object],
        array: npt.NDArray[np.uint8],
        device_address: Callable[[], int] | None,
    ) -> None:
        super().__init__(owner, "pinned", release)
        self._array = array
        self._device_ptr = 0
        if device_address is not None:
            try:
                self._device_ptr = device_address()
            except BaseException:
                self.close()
                raise

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        self.require_open()
        return self._array

    @property
    def device_ptr(self) -> int:
        self.require_open()
        return self._device_ptr

    def free(self) -> None:
        self.close()
