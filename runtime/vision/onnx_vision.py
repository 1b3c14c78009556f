"""The vision tower and the projector on ONNX Runtime."""

from __future__ import annotations

import numpy as np

from runtime.bundle import Bundle
from runtime.errors import BundleError, ClosedError, EngineError
from runtime.tiling import Grid, TileLayout, s2_matrices
from runtime.vision.external_data import check_external_data
from runtime.vision.onnx_session import Graph, VisionSettings, check_shape
from runtime.vision.protocol import F32

# Patches in one run of the tower. Its attention holds heads * patches^2 floats a tile, twice: 134 MB for 16 heads and
# 1024 patches, so 17 tiles at once would take 2.3 GB for nothing (tiles do not see each other, and the products of one
# are large enough to keep all cores busy). `runtime.budget` counts on one such tile at a time.
_PATCHES_PER_RUN = 1024
# As many in pixels, for towers that cut a tile into pieces of several sizes by themselves (static S²).
_PIXELS_PER_RUN = _PATCHES_PER_RUN * 14 * 14


class OnnxVision:
    """Implements :class:`runtime.vision.VisionEngine` with the two graphs of a bundle."""

    def __init__(self, bundle: Bundle, settings: VisionSettings) -> None:
        self._vision = bundle.manifest.vision
        self._hidden = bundle.manifest.decoder.hidden
        self._tiling = self._vision.tiling_spec()
        tower, projector = self._vision.tower, self._vision.projector
        scales = len(self._tiling.scales_px)
        if len(projector.scale_inputs) != scales:
            raise BundleError(
                f"{bundle.path}: vision.projector.scale_inputs has {len(projector.scale_inputs)} pairs "
                f"for {scales} entries of vision.tiling.scales_px"
            )
        for name in (tower.file, projector.file):
            check_external_data(bundle, name)
        self._tower: Graph | None = Graph(bundle.file(tower.file), settings)
        self._projector: Graph | None = Graph(bundle.file(projector.file), settings)
        check_shape(self._tower, "input", tower.input, (None, 3, tower.tile_px, tower.tile_px))
        check_shape(self._tower, "output", tower.output, (None, tower.patches_per_tile, tower.channels))
        check_shape(self._projector, "input", projector.input, (None, tower.patches_per_tile, tower.channels))
        check_shape(self._projector, "output", projector.output, (None, self._hidden))
        for name in (name for pair in projector.scale_inputs for name in pair):
            check_shape(self._projector, "input", name, (None, None))
        self._matrices: dict[tuple[Grid, bool], dict[str, F32]] = {}

    def features(self, tiles: F32) -> F32:
        """Run the tower, a bounded number of tiles at a time: f32 [T, 3, S, S] -> f32 [T, P, C]."""
        tower = self._vision.tower
        graph = _open(self._tower)
        _check_array("tiles", tiles, (None, 3, tower.tile_px, tower.tile_px))
        step = max(1, min(_PATCHES_PER_RUN // tower.patches_per_tile, _PIXELS_PER_RUN // tower.tile_px**2))
        parts = [
            graph.run(tower.output, {tower.input: np.ascontiguousarray(tiles[start : start + step])})
            for start in range(0, len(tiles), step)
        ]
        features = parts[0] if len(parts) == 1 else np.concatenate(parts)
        _check_result(graph, features, (len(tiles), tower.patches_per_tile, tower.channels))
        return features

    def project(self, features: F32, layout: TileLayout) -> F32:
        """Merge the scales and project: f32 [T, P, C] of one picture -> f32 [N, D]."""
        tower, projector = self._vision.tower, self._vision.projector
        graph = _open(self._projector)
        _check_array("features", features, (layout.num_tiles, tower.patches_per_tile, tower.channels))
        if projector.scale_inputs and not layout.multi_scale:
            # A plain picture under dynamic S²: its one tile stands for every scale.
            features = np.repeat(features, len(projector.scale_inputs), axis=0)
        feeds = {projector.input: np.ascontiguousarray(features), **self._scale_feeds(layout)}
        embeds = graph.run(projector.output, feeds)
        _check_result(graph, embeds, (layout.num_image_tokens, self._hidden))
        return embeds

    def encode(self, tiles: F32, layout: TileLayout) -> F32:
        """Both steps: f32 [T, 3, S, S] of one picture -> f32 [N, D]."""
        return self.project(self.features(tiles), layout)

    def close(self) -> None:
        """Give back both graphs; calls after this raise ClosedError."""
        self._tower = self._projector = None
        self._matrices.clear()

    def _scale_feeds(self, layout: TileLayout) -> dict[str, F32]:
        """The averaging matrices by input name; computed once for each grid, of which a model has a few dozen."""
        names = self._vision.projector.scale_inputs
        if not names:
            return {}
        key = (layout.grid, layout.multi_scale)
        if key not in self._matrices:
            pairs = s2_matrices(layout, self._tiling)
            feeds: dict[str, F32] = {}
            for (name_h, name_w), (matrix_h, matrix_w) in zip(names, pairs, strict=True):
                feeds[name_h], feeds[name_w] = matrix_h, matrix_w
            self._matrices[key] = feeds
        return self._matrices[key]


def _open(graph: Graph | None) -> Graph:
    if graph is None:
        raise ClosedError("the vision engine is closed")
    return graph


def _check_array(name: str, array: F32, expected: tuple[int | None, ...]) -> None:
    shape = array.shape
    fits = len(shape) == len(expected) and all(want in (None, have) for have, want in zip(shape, expected, strict=True))
    if array.dtype != np.float32 or not fits or array.size == 0:
        wanted = ", ".join("T" if size is None else str(size) for size in expected)
        raise EngineError(f"{name} are {array.dtype} {list(shape)}; this bundle takes float32 [{wanted}]")


def _check_result(graph: Graph, array: F32, expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise EngineError(
            f"{graph.path.name} gave {list(array.shape)}, the manifest and the layout say {list(expected)}"
        )
