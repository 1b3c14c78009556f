"""What the exporter knows of a checkpoint, whatever its layout. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.bundle.manifest import Family, PreprocessSpec, TilingSection

Layout = Literal["llava-hf", "llava-original", "vila"]


@dataclass(frozen=True, slots=True)
class PromptConvention:
    """How the family writes prompts (see `export.prompt_export.PromptRequest`)."""

    folders: tuple[Path, ...]
    image_token_id: int | None
    text_after: str
    each_tile: bool
    start_text: str
    end_text: str
    video_as_pictures: bool
    template: str | None = None
    default_template: str | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder that was read and checked, weights apart.

    ``tower`` is the folder that describes the vision tower; with LLaVA's own layout it may lie elsewhere.
    ``repeats``: how often the projector sees the channels of a tile side by side (a dynamic-S² checkpoint that is shown
    plain tiles). ``vision_files`` (weights and configurations) decide the vision graphs, ``files`` everything about a
    bundle.
    """

    root: Path
    layout: Layout
    family: Family
    tower: Path
    patches_per_tile: int
    channels: int
    repeats: int
    preprocess: PreprocessSpec
    tiling: TilingSection
    prompt: PromptConvention
    vision_files: tuple[Path, ...]
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.root.resolve().name
