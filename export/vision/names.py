"""Names in the vision graphs and files: what the exporter writes and the runtime binds."""

from __future__ import annotations

from runtime.bundle.manifest import GRAPH_DATA_SUFFIX

OPSET = 18
TOWER_FILE, PROJECTOR_FILE = "vision_tower.onnx", "vision_projector.onnx"
GRAPH_FILES = tuple(name + suffix for name in (TOWER_FILE, PROJECTOR_FILE) for suffix in ("", GRAPH_DATA_SUFFIX))
TOWER_INPUT, FEATURES, PROJECTOR_OUTPUT = "tiles", "features", "image_embeds"


def scale_inputs(scales: int) -> tuple[tuple[str, str], ...]:
    """Names of the averaging matrices of each scale: height, width."""
    return tuple((f"area_h_{index}", f"area_w_{index}") for index in range(scales))
