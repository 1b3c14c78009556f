"""What cameras and codecs do to a picture: JPEG, blur, motion, light, noise, and something small in front of a figure.

Needs OpenCV; every function maps u8 RGB [H, W, 3] to u8 RGB [H, W, 3].
"""

from __future__ import annotations

import cv2
import numpy as np

from runtime.sources.scene_render import masks
from runtime.sources.scenes import Scene

MAX_OCCLUDED = 0.2  # of a figure's area


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Through a JPEG file of this quality."""
    ok, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok, "OpenCV could not encode a JPEG"
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, `sigma` in pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma)


def motion_blur(image: np.ndarray, length: int, angle: float) -> np.ndarray:
    """Camera motion over `length` pixels (odd) in the direction `angle`, radians."""
    kernel = np.zeros((length, length), np.float32)
    middle = length // 2
    reach = np.array([np.cos(angle), np.sin(angle)]) * middle
    start, end = np.round(middle - reach).astype(int), np.round(middle + reach).astype(int)
    cv2.line(kernel, [int(v) for v in start], [int(v) for v in end], 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def light(image: np.ndarray, gain: np.ndarray, offset: float) -> np.ndarray:
    """image * gain [3] + offset, in u8 steps."""
    return np.clip(image * gain.astype(np.float32) + np.float32(offset), 0, 255).astype(np.uint8)


def noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise, `sigma` in u8 steps."""
    grain = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma)
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def occlude(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A grey patch over the edge of one figure, never over more than 20 % of any figure's area."""
    if not scene.figures:
        return image
    height, width = image.shape[:2]
    cover = masks(scene, width, height)
    area = cover.sum((1, 2))
    figure = scene.figures[rng.integers(len(scene.figures))]
    size = figure.radius * rng.uniform(0.5, 1.2, 2)
    for _ in range(4):
        heading = rng.uniform(0, 2 * np.pi)
        away = figure.radius * rng.uniform(0.6, 1.0) + size.min() * 0.7
        x, y = figure.x + away * np.cos(heading), figure.y + away * np.sin(heading)
        xs = np.clip(np.round((x + np.array([-0.5, 0.5]) * size[0]) * width / scene.width), 0, width).astype(int)
        ys = np.clip(np.round((y + np.array([-0.5, 0.5]) * size[1]) * height / scene.height), 0, height).astype(int)
        box = np.s_[ys[0] : ys[1], xs[0] : xs[1]]
        hidden = cover[(slice(None), *box)].sum((1, 2)) / np.maximum(area, 1e-6)
        if hidden.max() <= MAX_OCCLUDED:
            out = image.copy()
            grey = rng.uniform(30, 200) + rng.normal(0, 4, 3)
            out[box] = np.clip(grey + rng.normal(0, 4, out[box].shape), 0, 255).astype(np.uint8)
            return out
    return image


def augment(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A random, mild chain of the above; about one picture in three is left as it is."""
    if rng.random() < 0.3:
        return image
    if rng.random() < 0.25:
        image = occlude(image, scene, rng)
    if rng.random() < 0.25:
        gain = rng.uniform(0.65, 1.35) * rng.uniform(0.9, 1.1, 3)
        image = light(image, gain, rng.uniform(-12, 12))
    if rng.random() < 0.2:
        image = blur(image, rng.uniform(0.4, 1.5))
    elif rng.random() < 0.12:
        image = motion_blur(image, int(rng.choice((3, 5, 7))), rng.uniform(0, np.pi))
    if rng.random() < 0.12:
        image = noise(image, rng.uniform(2, 22), rng)
    if rng.random() < 0.5:
        image = jpeg(image, int(rng.integers(30, 96)))
    return image
