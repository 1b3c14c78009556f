"""What a release is compiled for, and with which NVRTC: pinned, so that images and their registers are reproducible.

A cubin runs on its own SM alone on Jetson (one for sm_80 is refused by an Orin), and needs a driver of its compiler's
major version: sm_87 is made with 12.6, which JetPack 6 and 7 load; sm_90 and sm_110 with 13.0, the first to know Thor
by that number. Everything else from 8.0 on takes the PTX, which the driver compiles.
"""

from __future__ import annotations

from dataclasses import dataclass

MINIMUM_CAPABILITY = (8, 0)  # m16n8k16 and cp.async


@dataclass(frozen=True, slots=True)
class Target:
    """``arch`` as NVRTC takes it; ``nvrtc``: the version that compiles it."""

    arch: str
    nvrtc: tuple[int, int]

    @property
    def suffix(self) -> str:
        """Of the image's file name."""
        return f"{self.arch}.{'cubin' if self.arch.startswith('sm_') else 'ptx'}"


CUBINS = {
    87: Target("sm_87", (12, 6)),
    90: Target("sm_90", (13, 0)),
    110: Target("sm_110", (13, 0)),
}
PTX = Target("compute_80", (12, 6))
