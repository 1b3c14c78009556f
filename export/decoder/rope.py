"""Rotary position embeddings: their settings in a configuration, frequencies and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from runtime.errors import ExportError

F32 = npt.NDArray[np.float32]
Kind = Literal["default", "linear", "llama3", "dynamic"]

DEFAULT_THETA = 10000.0
ROPE_HINT = "decoders with RoPE of the types default, linear, llama3 and dynamic can be exported"
_FACTOR = ("factor", 1.0)
# What each type needs beside theta: key and least value.
_NEEDS: Mapping[Kind, tuple[tuple[str, float], ...]] = {
    "default": (),
    "linear": (_FACTOR,),
    "llama3": (
        _FACTOR,
        ("low_freq_factor", 1e-3),
        ("high_freq_factor", 1e-3),
        ("original_max_position_embeddings", 1),
    ),
    "dynamic": (_FACTOR,),
}


@dataclass(frozen=True, slots=True)
class Rope:
    """How positions become angles: frequency i is theta^(−2i/head_dim), then scaled by kind.

    linear divides all of them by ``factor``; llama3 those whose wavelength is above original_context / low_freq_factor
    and passes over smoothly up to original_context / high_freq_factor; dynamic (dynamic NTK) changes theta with the
    length beyond the context, and up to it, where alone it is exported, nothing.
    """

    kind: Kind = "default"
    theta: float = DEFAULT_THETA
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def context(self, max_position_embeddings: int) -> int:
        """Positions that the decoder was made for: linear stretches them, the others have them in the configuration."""
        return int(max_position_embeddings * self.factor) if self.kind == "linear" else max_position_embeddings

    def frequencies(self, head_dim: int) -> F32:
        """Angle per position, f32 [head_dim/2]: computed and rounded in the order of the models' own code."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
        plain = (1.0 / self.theta**exponents).astype(np.float32)
        if self.kind == "linear":
            return plain / np.float32(self.factor)
        return self._llama3(plain) if self.kind == "llama3" else plain

    def _llama3(self, plain: F32) -> F32:
        factor, low, high = np.float32(self.factor), np.float32(self.low_freq_factor), np.float32(self.high_freq_factor)
        length = np.float32(self.original_context)
        wavelength = np.float32(2 * math.pi) / plain
        slow = wavelength > np.float32(self.original_context / self.low_freq_factor)
        fast = wavelength < np.float32(self.original_context / self.high_freq_factor)
        smooth = (length / wavelength - low) / (high - low)
        passing: F32 = (1 - smooth) * plain / factor + smooth * plain
        return np.where(slow, plain / factor, np.where(fast, plain, passing))


def rope_tables(frequencies: F32, positions: int) -> tuple[F32, F32]:
    """(cos, sin), each f32 [positions, head_dim/2], of position · frequency.

    Angles are rounded to f32 as in the models' own code, so that long contexts see the same angles that they were
    trained with; cos and sin of them are computed in f64.
    """
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies[None, :]
    wide = angles.astype(np.float64)
    return np.cos(wide).astype(np.float32), np.sin(wide).astype(np.float32)


def read_rope(config: Mapping[str, Any], where: str) -> Rope:
    """The settings in ``rope_parameters`` (transformers 5), or in ``rope_theta`` and ``rope_scaling``.

    Raises ExportError that names ``where``, the setting and its value: another type (yarn, longrope), a rotation of a
    part of the head, numbers out of range.
    """
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise ExportError(f"{where}: RoPE parameters are {parameters!r}, expected a table", hint=ROPE_HINT)
    named = parameters.get("rope_type", parameters.get("type", "default"))
    kind: Kind | None = next((known for known in _NEEDS if known == named), None)
    if kind is None:
        raise ExportError(f"{where}: RoPE of the type {named}", hint=ROPE_HINT)
    partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial not in (1, None):
        raise ExportError(f"{where}: partial_rotary_factor is {partial!r}, only 1 is known", hint=ROPE_HINT)
    theta = parameters.get("rope_theta", config.get("rope_theta", DEFAULT_THETA))
    found = {key: _number(where, key, parameters.get(key), low) for key, low in _NEEDS[kind]}
    if kind == "llama3" and found["high_freq_factor"] <= found["low_freq_factor"]:
        message = f"{where}: high_freq_factor of RoPE is {found['high_freq_factor']:g}"
        raise ExportError(f"{message}, not above low_freq_factor {found['low_freq_factor']:g}", hint=ROPE_HINT)
    context = int(found.pop("original_max_position_embeddings", 8192))
    return Rope(kind, _number(where, "rope_theta", theta, 1.0), **found, original_context=context)


def _number(where: str, name: str, value: Any, low: float) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < low:
        raise ExportError(f"{where}: {name} of RoPE is {value!r}, expected at least {low:g}", hint=ROPE_HINT)
    return float(value)
