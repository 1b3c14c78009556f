"""The CUDA driver behind one interface (`protocol`), with three backends; :func:`open_device` picks one."""

from kernels.driver.opening import Backend, open_device
from kernels.driver.protocol import Device, DeviceMemory, Event, Graph, Module, PinnedMemory, Stream

__all__ = ["Backend", "Device", "DeviceMemory", "Event", "Graph", "Module", "PinnedMemory", "Stream", "open_device"]
