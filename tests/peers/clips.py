"""Moving pictures for the peers, made by ffmpeg: raw, H.264 and JPEG; and the number that a picture shows."""

from __future__ import annotations

import functools
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "runtime" / "demo" / "demo.avi"
BLOCK_PX, BITS = 8, 24


def need(program: str, package: str) -> str:
    """The path of a program, or the test is skipped."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"needs {program} (Debian: {package})")
    return found


@functools.lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    """One folder of this process, gone when it ends."""
    return tempfile.TemporaryDirectory(prefix="vlm-clips-", ignore_cleanup_errors=True)


def clip(
    kind: str, width: int = 320, height: int = 240, fps: int = 25, frames: int = 50, gop: int = 25, demo: bool = False
) -> Path:
    """A clip of the test picture, or of the demo video: kind "yuv" (raw I420), "h264" (Annex B) or "mjpeg"."""
    path = Path(_folder().name) / f"{kind}-{width}x{height}-{fps}-{frames}-{gop}-{demo}.{kind}"
    if path.exists():
        return path
    own = path.with_name(f"{threading.get_ident()}-{path.name}")  # two threads may make it at the same time
    source = (
        ["-stream_loop", "-1", "-i", str(DEMO)] if demo else ["-f", "lavfi", "-i", f"testsrc2=size=320x240:rate={fps}"]
    )
    made = {
        "yuv": ["-pix_fmt", "yuv420p", "-f", "rawvideo"],
        "mjpeg": ["-c:v", "mjpeg", "-q:v", "4", "-pix_fmt", "yuvj420p", "-f", "mjpeg"],
        "h264": [
            *shlex.split("-c:v libx264 -preset ultrafast -profile:v baseline -pix_fmt yuv420p -threads 1"),
            *("-x264-params", f"keyint={gop}:min-keyint={gop}:scenecut=0:repeat-headers=1:aud=0", "-f", "h264"),
        ],
    }[kind]
    command = [need("ffmpeg", "ffmpeg"), "-nostdin", "-y", "-loglevel", "error", *source]
    command += ["-vf", f"scale={width}:{height}", "-frames:v", str(frames), *made, str(own)]
    subprocess.run(command, check=True, timeout=120)
    return own.replace(path)


def number_of(rgb: memoryview | bytes, width: int) -> int:
    """The number in the first rows of a picture of the RTSP server, given as RGB bytes of at least 8 rows."""
    bits = 0
    for block in range(BITS):
        at = 3 * (width * (BLOCK_PX // 2) + block * BLOCK_PX + BLOCK_PX // 2)
        bits = bits << 1 | (rgb[at + 1] > 127)
    return bits
