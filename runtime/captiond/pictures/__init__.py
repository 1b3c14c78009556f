"""JPEG pictures of frames, scene change, and the images of requests: made in child processes, asked for from here.

`Pictures` is what the daemon's main process uses; it loads neither numpy nor OpenCV. Two children do the work, each
started when it is first needed: "camera" holds the memory of the frames and draws, "uploads" decodes what strangers
send and can see no frame.
"""

from __future__ import annotations

from runtime.captiond.pictures.client import Jpeg, Pictures, PictureStats

__all__ = ["Jpeg", "PictureStats", "Pictures"]
