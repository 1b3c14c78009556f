#!/usr/bin/env python3
"""Write the demo video and its ground truth: runtime/demo/demo.avi and runtime/demo/demo_truth.jsonl.

    python scripts/make_demo_video.py [--out runtime/demo]

Six scenes of 40 frames with 1, 2, 3, 1, 2 and 3 moving shapes, sensor noise and drifting brightness, Motion JPEG at
12 frames a second. Line i of the truth is {"frame": i, "caption": the one right caption, "ambiguous": true where it
could be argued about, such as a shape on the border of two places}.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository, when run as a file

from PIL import Image

from runtime.sources.scene_render import Picture, moving_pictures
from scripts.demo_model.pictures import generator

WIDTH_PX, HEIGHT_PX, FRAMES, FPS = 256, 192, 240, 12
COUNTS = (1, 2, 3, 1, 2, 3)
SPEED = 1.2  # units per frame, the short side being 96
QUALITY = 60
MAX_BYTES = 1_500_000


def film(seed: int = 0) -> list[Picture]:
    """The frames of the demo video before compression."""
    rng = generator("video", seed)
    return list(islice(moving_pictures(rng, WIDTH_PX, HEIGHT_PX, COUNTS, FRAMES // len(COUNTS), SPEED), FRAMES))


def motion_jpeg(frames: Sequence[bytes], width: int, height: int, fps: int) -> bytes:
    """JPEG files as one AVI (RIFF) file with an index: the oldest container that every decoder reads."""
    largest = max(len(frame) for frame in frames)
    rate = largest * fps
    header = struct.pack("<14I", 1_000_000 // fps, rate, 0, 0x10, len(frames), 0, 1, largest, width, height, 0, 0, 0, 0)
    stream = b"vidsMJPG" + struct.pack(
        "<IHHIIIIIIII4H", 0, 0, 0, 0, 1, fps, 0, len(frames), largest, 0xFFFFFFFF, 0, 0, 0, width, height
    )
    bitmap = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, b"MJPG", width * height * 3, 0, 0, 0, 0)
    headers = _list(b"hdrl", _chunk(b"avih", header), _list(b"strl", _chunk(b"strh", stream), _chunk(b"strf", bitmap)))
    chunks = [_chunk(b"00dc", frame) for frame in frames]
    index, offset = [], 4
    for frame, chunk in zip(frames, chunks, strict=True):
        index.append(b"00dc" + struct.pack("<III", 0x10, offset, len(frame)))
        offset += len(chunk)
    body = b"AVI " + headers + _list(b"movi", *chunks) + _chunk(b"idx1", b"".join(index))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _list(name: bytes, *chunks: bytes) -> bytes:
    return _chunk(b"LIST", name + b"".join(chunks))


def jpeg(picture: Picture, quality: int) -> bytes:
    """One frame as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(picture.rgb).save(file, "JPEG", quality=quality)
    return file.getvalue()


def write(pictures: Sequence[Picture], out: Path, quality: int) -> int:
    """Write video and truth to the folder `out`; returns the video's size in bytes."""
    video = motion_jpeg([jpeg(picture, quality) for picture in pictures], WIDTH_PX, HEIGHT_PX, FPS)
    if len(video) > MAX_BYTES:
        raise ValueError(f"the video has {len(video)} bytes, the limit is {MAX_BYTES}: lower --quality")
    rows = ({"frame": i, "caption": p.caption, "ambiguous": p.ambiguous} for i, p in enumerate(pictures))
    truth = "".join(json.dumps(row) + "\n" for row in rows).encode()
    out.mkdir(parents=True, exist_ok=True)
    for name, content in (("demo.avi", video), ("demo_truth.jsonl", truth)):
        partial = out / (name + ".tmp")
        partial.write_bytes(content)
        partial.replace(out / name)
    return len(video)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "runtime" / "demo")
    parser.add_argument("--quality", type=int, default=QUALITY, help=f"JPEG quality of the frames ({QUALITY})")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    pictures = film(args.seed)
    size = write(pictures, args.out, args.quality)
    clear = sum(not picture.ambiguous for picture in pictures)
    sys.stderr.write(f"{len(pictures)} frames, {clear} unambiguous, {size} bytes in {args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
