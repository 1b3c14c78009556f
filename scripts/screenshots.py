#!/usr/bin/env python3
"""Make the pictures of the page in docs/images/ again, from the daemon itself on the demo bundle and the demo video.

    python scripts/screenshots.py [--out docs/images]

Needs selenium and Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository, when run as a file

import numpy as np
from PIL import Image

from tests.browser.chromium import Browser, chromium, missing
from tests.imports import ROOT
from tests.peers.daemon import RunningDaemon

FLAT_COLORS, SCENE_COLORS = 96, 160
PROMPTS = [
    {"id": "describe", "text": "Describe the image."},
    {"id": "red-star", "text": "Is there a red star?", "kind": "yes_no", "every_s": 4.0},
]
RULE = {"name": "red-star", "prompt": "red-star", "op": "==", "value": "yes"}
FILM = {
    "name": "film", "uri": "runtime/demo/demo.avi", "loop": True, "captions_per_s": 2.0, "prompt": PROMPTS,
    "rule": [RULE],
}  # fmt: skip
SHAPES = {"name": "shapes", "uri": "synthetic://?seed=4", "captions_per_s": 1.0}
# Nothing listens there: a camera that is switched off.
DOOR = {"name": "door", "uri": "rtsp://127.0.0.1:9/door", "captions_per_s": 1.0}


@contextmanager
def daemon(sources: Sequence[dict[str, Any]]) -> Iterator[RunningDaemon]:
    """The daemon, once it has something to show."""
    with tempfile.TemporaryDirectory() as folder, RunningDaemon(Path(folder), sources) as running:
        for source in sources:
            if source is not DOOR:
                running.wait_caption(source["name"], after=3)
        yield running


def shoot(browser: Browser, path: Path, scenes: int) -> None:
    """Take the picture when the film's history has so many rows, and a caption stands beside its frame."""
    rows = "return document.querySelectorAll('.card .history')[0].querySelectorAll('li').length"
    browser.wait(lambda: browser.js(rows) >= scenes, f"{scenes} rows", timeout_s=90.0)
    whole = """
      const pair = document.querySelector(".pair");
      const below = (image) => image.getBoundingClientRect().top > innerHeight; // fetched when somebody scrolls there
      const thumbs = [...document.querySelectorAll(".mini img")].every((image) => image.naturalWidth || below(image));
      const asked = document.querySelector(".question").textContent.startsWith("Describe");
      return asked && thumbs && pair.dataset.writing === "false" && Boolean(pair.querySelector("img"));
    """
    browser.wait(lambda: browser.js(whole), "a whole caption")
    time.sleep(0.5)  # figures below the caption follow within a quarter of a second, pictures when they are decoded
    picture = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    small(picture).save(path, optimize=True)
    sys.stderr.write(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size} bytes\n")


def small(picture: Image.Image) -> Image.Image:
    """The picture in 256 colours: those of the page exactly as they are, the camera's noise by the nearest."""
    pixels = np.asarray(picture, dtype=np.int32)
    colors, place, count = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    scene = picture.quantize(SCENE_COLORS, dither=Image.Dither.NONE).getpalette()
    assert scene is not None
    flat = colors[np.argsort(count)[::-1][:FLAT_COLORS]]
    palette = np.concatenate([flat, np.array(scene, dtype=np.int32).reshape(-1, 3)])
    nearest = np.concatenate(
        [((part[:, None] - palette) ** 2).sum(-1).argmin(-1) for part in np.array_split(colors, 64)]
    )
    found = Image.fromarray(nearest[place].astype(np.uint8).reshape(pixels.shape[:2]), mode="P")
    found.putpalette(palette.astype(np.uint8).tobytes())
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    out = parser.parse_args(argv).out.resolve()
    if reason := missing():
        sys.stderr.write(f"error: {reason}\n")
        return 2
    os.chdir(ROOT)  # the page shows where a source is: the same on every machine
    with chromium() as browser:
        with daemon([FILM]) as running:
            browser.open(running.url + "/")
            shoot(browser, out / "captiond-light.png", scenes=8)
            browser.open(running.url + "/", width=390, height=844, phone=True)
            shoot(browser, out / "captiond-phone.png", scenes=3)
        with daemon([FILM, SHAPES, DOOR]) as running:
            browser.open(running.url + "/", dark=True)
            shoot(browser, out / "captiond-dark.png", scenes=6)
    return 0


if __name__ == "__main__":
    sys.exit(main())
