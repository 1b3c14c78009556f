"""Training batches: scenes, augmented pictures, tiles as the runtime makes them, packed questions and dense targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from runtime.sources.scene_render import render, sample_look
from runtime.sources.scenes import HELD_OUT_PAIRS, Scene, sample_scene
from scripts.demo_model.architecture import MEAN, PICTURE_PX, STD, TileIndex, square_order, tile_index
from scripts.demo_model.augment import augment
from scripts.demo_model.dense_head import PatchTargets, batch_targets, patch_targets
from scripts.demo_model.packing import Packed, Packer, Row
from scripts.demo_model.pictures import OUTLINES, TILE_PX, Family, closest_grid, generator, picture_size
from scripts.demo_model.questions import ask

BATCH = 32
ROW_TOKENS = {"demo-llava": 136, "demo-nvila": 144}
KIND_WEIGHTS = {  # the hard kinds more often
    "describe": 3.0, "count": 0.7, "count_shape": 1.0, "count_color": 1.0, "exists": 1.2, "color": 1.0, "shape": 1.0,
    "size": 1.0, "where": 1.2, "relation": 2.5,
}  # fmt: skip
QUESTIONS = 11  # tried per picture; what fits is used
CONVERSATION_SHARE = 0.15
MAX_TILES_PER_BATCH = (5 * OUTLINES["square"]) + 7 * (OUTLINES["wide"] + OUTLINES["tall"] + OUTLINES["panorama"])
MAX_TOKENS_PER_BATCH = 16 * OUTLINES["square"] + 24 * (OUTLINES["wide"] + OUTLINES["tall"] + OUTLINES["panorama"])


@dataclass(frozen=True)
class Vision:
    """The vision input of a batch; for demo-nvila, tiles and index may be padded so that shapes never change."""

    tiles: Tensor  # f32 [T, 3, S, S], normalised
    index: TileIndex | None
    tokens: list[int]  # image tokens of each picture

    @property
    def num_tokens(self) -> int:
        return sum(self.tokens)


@dataclass(frozen=True)
class Batch:
    """One step's data."""

    vision: Vision
    targets: PatchTargets  # of the patches of real image tokens
    packed: Packed | None


def prepare(images: list[np.ndarray], family: Family, padded: bool = False) -> Vision:
    """u8 pictures to tiles: Pillow's bicubic on u8, then normalised, as the runtime does."""
    if family == "demo-llava":
        tiles = [_resized(image, PICTURE_PX, PICTURE_PX) for image in images]
        return Vision(_normalised(np.stack(tiles), family), None, [(PICTURE_PX // 16) ** 2] * len(images))
    grids = [closest_grid(image.shape[1], image.shape[0]) for image in images]
    stacks = [s2_tiles(image, grid) for image, grid in zip(images, grids, strict=True)]
    index = tile_index(grids, [len(stack) for stack in stacks])
    tiles_u8 = np.concatenate(stacks)
    if padded:
        room = MAX_TILES_PER_BATCH - len(tiles_u8)
        tiles_u8 = np.concatenate([tiles_u8, np.zeros((room, *tiles_u8.shape[1:]), np.uint8)])
        room = MAX_TOKENS_PER_BATCH * 4 - len(index.fine)
        index = TileIndex(*(torch.nn.functional.pad(part, (0, room)) for part in (index.fine, index.coarse)))
    return Vision(_normalised(tiles_u8, family), index, [4 * rows * columns for rows, columns in grids])


def s2_tiles(image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """u8 [1 + rows * columns, 64, 64, 3]: the whole picture, then the fine tiles row-major."""
    rows, columns = grid
    fine = _resized(image, columns * TILE_PX, rows * TILE_PX)
    fine = fine.reshape(rows, TILE_PX, columns, TILE_PX, 3).transpose(0, 2, 1, 3, 4).reshape(-1, TILE_PX, TILE_PX, 3)
    return np.concatenate([_resized(image, TILE_PX, TILE_PX)[None], fine])


def _resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _normalised(tiles: np.ndarray, family: Family) -> Tensor:
    scale = np.float32(1 / 255 / STD[family])
    out = tiles.astype(np.float32).transpose(0, 3, 1, 2) * scale - np.float32(MEAN[family] / STD[family])
    return torch.from_numpy(np.ascontiguousarray(out))


def training_batch(family: Family, seed: int, step: int, packer: Packer | None) -> Batch:
    """The batch of a step: a function of (family, seed, step) alone, so a resumed run continues exactly.

    Without a packer only the picture and its dense targets are made (the first, vision-only phase).
    """
    rng = generator("train", seed, step)
    images, targets, rows = [], [], []
    for outline in _outlines(family):
        scene, image = _example(family, rng, outline)
        images.append(image)
        targets.append(_targets(family, scene, image))
        if packer:
            rows.append((_questions(scene, rng), bool(rng.random() < CONVERSATION_SHARE)))
    vision = prepare(images, family, padded=True)
    packed = None
    if packer:
        laid = [Row(n, qas, talk) for n, (qas, talk) in zip(vision.tokens, rows, strict=True)]
        packed = packer.pack(laid, ROW_TOKENS[family])
    return Batch(vision, batch_targets(targets), packed)


def _outlines(family: Family) -> Iterable[str | None]:
    if family == "demo-llava":
        return [None] * BATCH
    return [name for name, count in OUTLINES.items() for _ in range(count)]


def _example(family: Family, rng: np.random.Generator, outline: str | None) -> tuple[Scene, np.ndarray]:
    width, height = picture_size(rng, family, outline)
    spacing = float(rng.uniform(0.82, 1.0)) if rng.random() < 0.1 else 1.0
    scene = sample_scene(rng, width / height, spacing=spacing)
    image = render(scene, sample_look(rng), rng, width, height)
    return scene, augment(image, scene, rng)


def _targets(family: Family, scene: Scene, image: np.ndarray) -> PatchTargets:
    if family == "demo-llava":
        return patch_targets(scene, PICTURE_PX // 16, PICTURE_PX // 16)
    rows, columns = closest_grid(image.shape[1], image.shape[0])
    flat = patch_targets(scene, rows * 4, columns * 4)
    order = square_order(rows, columns)
    return PatchTargets(*(getattr(flat, name)[order] for name in PatchTargets.__dataclass_fields__))


_KINDS = tuple(KIND_WEIGHTS)
_CUMULATIVE = np.cumsum(list(KIND_WEIGHTS.values())) / sum(KIND_WEIGHTS.values())


def _questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Different questions about a scene, by `KIND_WEIGHTS`."""
    found: dict[str, str] = {}
    for draw in rng.random(QUESTIONS):
        qa = ask(scene, _KINDS[int(np.searchsorted(_CUMULATIVE, draw))], rng, unseen=HELD_OUT_PAIRS)
        if qa:
            found.setdefault(qa[1], qa[2])
    return list(found.items())
