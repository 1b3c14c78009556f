"""How the CUDA decoder runs. Plain values: nothing of CUDA is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from runtime.errors import InputError

if TYPE_CHECKING:
    from kernels.driver.protocol import Device

DeviceName = Literal["auto", "cuda_bindings", "pycuda", "emulator"]
KvForm = Literal["f16", "i8"]
EmbeddingsForm = Literal["auto", "f16", "i8"]


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """Settings of the decoder "cuda"; other decoders ignore them.

    device: a backend of `kernels.driver.open_device` ("auto" never takes "emulator", which runs the kernels on the CPU,
    for tests), or an open device, which the session then leaves open. kv: "i8" stores keys and values in 8 bits with
    one scale per token and head: half the memory, a little less exact. embeddings: the token table in device memory,
    16 bits a value or 8 with a scale per row; "auto" takes 8 when 16 do not fit. graphs: replay a step as one CUDA
    graph; without them each kernel is launched by itself, with the same results.
    """

    device: DeviceName | Device = "auto"
    kv: KvForm = "f16"
    embeddings: EmbeddingsForm = "auto"
    graphs: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kv", self.kv, get_args(KvForm)),
            ("embeddings", self.embeddings, get_args(EmbeddingsForm)),
        ):
            if value not in known:
                raise InputError(f"{name} is {value!r}", hint=f"one of {', '.join(known)}")
        if isinstance(self.device, str) and self.device not in get_args(DeviceName):
            raise InputError(
                f"device is {self.device!r}", hint=f"one of {', '.join(get_args(DeviceName))}, or a device"
            )
