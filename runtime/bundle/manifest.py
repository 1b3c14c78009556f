"""The manifest of a bundle: every group and key as a frozen dataclass. docs/bundle.md says what each means.

The types below are the schema: `runtime.bundle.parse` reads a JSON object by them and refuses whatever does not fit.
``Limits(low, high)`` bounds a number, the length of a text or the number of items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from runtime.tiling import TilingSpec

SCHEMA = 3
MANIFEST_NAME = "manifest.json"
GRAPH_DATA_SUFFIX = ".data"  # of the file that holds a vision graph's weights, when the graph itself does not

Family = Literal["llava", "nvila"]
TileMode = Literal["resize", "crop", "pad", "dynamic", "dynamic_s2"]
Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
VisionPrecision = Literal["fp32", "fp16", "int8"]
DecoderKind = Literal["onnx", "cuda"]
Activations = Literal["f16", "bf16"]
ImagePlacement = Literal["inline", "first"]
QuantizationMethod = Literal["rtn", "awq", "gptq", "compressed-tensors"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a number, of the length of a text, or of the number of items."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Source:
    """Where the bundle came from. ``digest`` is the SHA-256 over the checkpoint's weights and configuration files."""

    name: Annotated[str, Limits(1, 200)]
    family: Family
    digest: Annotated[str, Limits(64, 64)]
    tool: Annotated[str, Limits(1, 200)]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size and SHA-256 (hex) of one file of the bundle."""

    bytes: Annotated[int, Limits(0, 2**44)]
    sha256: Annotated[str, Limits(64, 64)]


@dataclass(frozen=True, slots=True)
class TowerGraph:
    """The graph tiles f32 [T,3,tile_px,tile_px] -> features f32 [T,patches_per_tile,channels]."""

    file: str
    input: Annotated[str, Limits(1, 100)]
    output: Annotated[str, Limits(1, 100)]
    tile_px: Annotated[int, Limits(1, 4096)]
    patches_per_tile: Annotated[int, Limits(1, 65536)]
    channels: Annotated[int, Limits(1, 65536)]
    precision: VisionPrecision


@dataclass(frozen=True, slots=True)
class ProjectorGraph:
    """The graph features (and one pair of averaging matrices per scale) -> image_embeds."""

    file: str
    input: Annotated[str, Limits(1, 100)]
    output: Annotated[str, Limits(1, 100)]
    scale_inputs: Annotated[tuple[tuple[str, str], ...], Limits(0, 8)]


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """From a picture to tiles: how it is resized, then ``(u8 * rescale - mean) / std`` per channel (RGB)."""

    mode: TileMode
    resample: Resample
    shortest_edge_px: Annotated[int | None, Limits(1, 8192)]
    rescale: Annotated[float, Limits(1e-6, 1e3)]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad_rgb: Annotated[tuple[int, int, int] | None, Limits(3, 3)]


@dataclass(frozen=True, slots=True)
class TilingSection:
    """The numbers that `runtime.tiling.TilingSpec` is made of, and how several pictures or frames are tiled."""

    tile_px: Annotated[int, Limits(1, 4096)]
    patches_per_side: Annotated[int, Limits(1, 256)]
    min_tiles: Annotated[int, Limits(1, 256)]
    max_tiles: Annotated[int, Limits(1, 256)]
    use_thumbnail: bool
    scales_px: Annotated[tuple[int, ...], Limits(0, 8)]
    resize_output_to_scale_idx: Annotated[int, Limits(-8, 7)]
    downsample: Annotated[int, Limits(1, 8)]
    tile_all: bool
    video_frames: Annotated[int, Limits(1, 4096)]


@dataclass(frozen=True, slots=True)
class VisionSection:
    """Tower, projector and what happens to a picture before them."""

    tower: TowerGraph
    projector: ProjectorGraph
    preprocess: PreprocessSpec
    tiling: TilingSection

    def tiling_spec(self) -> TilingSpec:
        """What `runtime.tiling` takes. Raises ConfigError for numbers that contradict each other."""
        tiling = self.tiling
        return TilingSpec(
            mode=self.preprocess.mode,
            tile_px=tiling.tile_px,
            patches_per_side=tiling.patches_per_side,
            min_tiles=tiling.min_tiles,
            max_tiles=tiling.max_tiles,
            use_thumbnail=tiling.use_thumbnail,
            scales_px=tiling.scales_px,
            resize_output_to_scale_idx=tiling.resize_output_to_scale_idx,
            downsample=tiling.downsample,
            tile_all=tiling.tile_all,
            video_frames=tiling.video_frames,
            shortest_edge_px=self.preprocess.shortest_edge_px or 0,
            class_tokens=self.tower.patches_per_tile - tiling.patches_per_side**2,
        )


@dataclass(frozen=True, slots=True)
class RoleSegments:
    """Literal text before and after what a role says; ``trim`` drops white space at both ends of it first."""

    open: Annotated[str, Limits(0, 4096)]
    close: Annotated[str, Limits(0, 4096)]
    trim: bool


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles of a conversation; ``system`` is None where the template has none."""

    system: RoleSegments | None
    user: RoleSegments
    assistant: RoleSegments


@dataclass(frozen=True, slots=True)
class ImagePlaceholder:
    """How one image stands in the prompt: ``begin_ids``, N times ``token_id``, ``end_ids``, then ``text_after``.

    With ``each_tile`` all that stands once per tile, and ``text_after_untiled`` follows a picture that is not tiled.
    A frame of a video is never tiled and ``video_text_after`` follows it.
    ``placement`` "inline": where the message has it; "first": all images of a message before its texts, which are then
    joined by ``text_joint``.
    """

    token: Annotated[str, Limits(1, 200)]
    token_id: Annotated[int, Limits(0, 2**31 - 1)]
    begin_ids: Annotated[tuple[int, ...], Limits(0, 64)]
    end_ids: Annotated[tuple[int, ...], Limits(0, 64)]
    text_after: Annotated[str, Limits(0, 200)]
    text_after_untiled: Annotated[str, Limits(0, 200)]
    video_text_after: Annotated[str, Limits(0, 200)]
    each_tile: bool
    placement: ImagePlacement
    text_joint: Annotated[str, Limits(0, 200)]


@dataclass(frozen=True, slots=True)
class PromptSection:
    """The chat template as literal segments; the runtime has no template engine."""

    tokenizer: str
    bos_ids: Annotated[tuple[int, ...], Limits(0, 16)]
    prefix: Annotated[str, Limits(0, 65536)]
    default_system: Annotated[str | None, Limits(0, 65536)]
    roles: Roles
    generation_prompt: Annotated[str, Limits(0, 4096)]
    stop_ids: Annotated[tuple[int, ...], Limits(1, 64)]
    special_tokens: Annotated[Mapping[str, int], Limits(0, 16384)]
    image: ImagePlaceholder
    context_tokens: Annotated[int, Limits(1, 2**24)]


@dataclass(frozen=True, slots=True)
class OnnxDecoder:
    """The decoder graph for ONNX Runtime; ``data`` is its one external, memory-mapped file."""

    file: str
    data: str
    accuracy_level: Annotated[int, Limits(0, 4)]


@dataclass(frozen=True, slots=True)
class T16Decoder:
    """The CUDA decoder's weights, a safetensors file of T16 tiles; ``activations``: what its kernels compute in."""

    file: str
    activations: Activations


@dataclass(frozen=True, slots=True)
class TokenEmbeds:
    """The token table, row-major ``[rows, hidden]``, little-endian, without a header; at least ``vocab`` rows."""

    file: str
    dtype: Literal["f16", "f32"]
    shape: tuple[int, int]


@dataclass(frozen=True, slots=True)
class DecoderSection:
    """Shape of the language model and the forms of its weights that the bundle holds.

    ``rope_frequencies``: the rotation of a pair of channels per position, in radians, ``head_dim / 2`` of them, scaling
    included. ``onnx`` and ``t16`` are there when ``kinds`` has "onnx" and "cuda".
    """

    kinds: Annotated[tuple[DecoderKind, ...], Limits(1, 2)]
    hidden: Annotated[int, Limits(1, 65536)]
    layers: Annotated[int, Limits(1, 1024)]
    heads: Annotated[int, Limits(1, 1024)]
    kv_heads: Annotated[int, Limits(1, 1024)]
    head_dim: Annotated[int, Limits(2, 1024)]
    ffn: Annotated[int, Limits(1, 2**20)]
    vocab: Annotated[int, Limits(2, 2**22)]
    max_seq_len: Annotated[int, Limits(1, 2**24)]
    rope_theta: Annotated[float, Limits(1e-3, 1e15)]
    rope_frequencies: Annotated[tuple[float, ...], Limits(1, 512)]
    rms_eps: Annotated[float, Limits(0.0, 1.0)]
    onnx: OnnxDecoder | None
    t16: T16Decoder | None
    token_embeds: TokenEmbeds


@dataclass(frozen=True, slots=True)
class QuantizationSection:
    """How the weights were quantised. ``digest`` is the SHA-256 over all integers, zeros and scales in canonical order:
    every form of the decoder in a bundle is packed from the same integers. ``head_bits`` 16: the LM head is f16 and no
    part of the digest.
    """

    bits: Annotated[int, Limits(2, 8)]
    group_size: Annotated[int, Limits(8, 4096)]
    method: QuantizationMethod
    digest: Annotated[str, Limits(64, 64)]
    head_bits: Annotated[int, Limits(2, 16)]


@dataclass(frozen=True, slots=True)
class ChecksSection:
    """What export measured and the limits that it held the values against (None: not measured by this build)."""

    tower_max_error: float | None
    projector_max_error: float | None
    limits: Mapping[str, float]
    prompt_conversations: Annotated[int, Limits(0, 2**31)]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that the runtime knows about a model. ``extra`` holds the top-level keys that begin with ``x-``."""

    schema: int
    source: Source
    files: Annotated[Mapping[str, FileEntry], Limits(0, 512)]
    vision: VisionSection
    prompt: PromptSection
    decoder: DecoderSection
    quantization: QuantizationSection
    checks: ChecksSection
    extra: Mapping[str, Any] = field(default_factory=dict)
