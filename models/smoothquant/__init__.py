"""SmoothQuant (Xiao et al., 2022) for CLIP and SigLIP towers: measure activations, smooth, compute in int8.

    scales = calibrate_tower(tower, calibration_tiles({"image": images, "video": videos})).scales
    int8 = w8a8_tower(tower, scales)                  # activations quantised token by token, as published
    graph = w8a8_tower(tower, scales, static=True)    # one fixed scale for each input, as in the exported graph

The towers that come back are references in torch: integers are multiplied and added exactly.
"""

from __future__ import annotations

from models.smoothquant.calibrate import (
    ALPHAS,
    ActivationMeter,
    Calibration,
    calibrate_layers,
    calibrate_tower,
    calibration_tiles,
    dropped_tokens,
    feature_error,
    first_states,
    layers_computed,
    measure_activations,
)
from models.smoothquant.smooth import smooth_layer, smooth_tower
from models.smoothquant.w8a8 import W8A8Linear, w8a8_layer, w8a8_tower
from models.vision_scales import DEFAULT_ALPHA, ActivationScales, linear_name, read_scales, write_scales

__all__ = [
    "ALPHAS",
    "DEFAULT_ALPHA",
    "ActivationMeter",
    "ActivationScales",
    "Calibration",
    "W8A8Linear",
    "calibrate_layers",
    "calibrate_tower",
    "calibration_tiles",
    "dropped_tokens",
    "feature_error",
    "first_states",
    "layers_computed",
    "linear_name",
    "measure_activations",
    "read_scales",
    "smooth_layer",
    "smooth_tower",
    "w8a8_layer",
    "w8a8_tower",
    "write_scales",
]
