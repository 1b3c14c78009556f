"""The page of the real daemon, on the demo bundle and the demo video: what stands beside a frame is true of it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser.chromium import Browser, missing
from tests.browser.stand_in import demo_jpegs
from tests.peers.daemon import DEMO_VIDEO, RunningDaemon

TRUTH = [json.loads(line) for line in (DEMO_VIDEO.parent / "demo_truth.jsonl").read_text().splitlines()]
CAPTIONS = 8
# A caption that is written to its end, the frame that the page says it is of, and the picture beside it, in one moment.
PAIR = """
  const pair = document.querySelector(".pair");
  const image = pair.querySelector(".thumb-box img");
  if (!image?.complete || !image.naturalWidth || pair.dataset.writing !== "false") return null;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext("2d").drawImage(image, 0, 0);
  const { caption, seq } = pair.dataset;
  return { caption, seq: Number(seq), text: pair.querySelector(".caption").textContent, picture: canvas.toDataURL() };
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    if reason := missing():
        pytest.skip(reason)
    pytest.importorskip("cv2", reason="needs OpenCV (pip install opencv-python-headless)")
    prompts = [{"id": "describe", "text": "Describe the image."}]
    film = {"name": "film", "uri": str(DEMO_VIDEO), "loop": True, "captions_per_s": 4.0, "prompt": prompts}
    with RunningDaemon(tmp_path_factory.mktemp("daemon"), [film]) as running:
        running.wait_caption("film")
        yield running


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((128, 96)), dtype=np.float32)


def test_the_caption_in_the_page_is_true_of_the_frame_beside_it(browser: Browser, daemon: RunningDaemon) -> None:
    frames = np.stack([pixels(frame) for frame in demo_jpegs()])
    browser.open(daemon.url + "/")
    seen: dict[str, dict[str, Any]] = {}
    judged = []

    def fresh() -> dict[str, Any] | None:
        pair = browser.js(PAIR)
        return pair if pair and pair["caption"] not in seen else None

    while len(judged) < CAPTIONS:
        pair = browser.wait(fresh, "a caption")
        seen[pair["caption"]] = pair
        picture = pixels(base64.b64decode(pair["picture"].split(",", 1)[1]))
        number = int(np.abs(frames - picture).mean(axis=(1, 2, 3)).argmin())
        assert number == pair["seq"] % len(TRUTH), "the picture is the frame that the page names"
        if not TRUTH[number]["ambiguous"]:
            judged.append((pair["text"], TRUTH[number]["caption"]))
    assert [text for text, _ in judged] == [truth for _, truth in judged]
    assert browser.clean()
