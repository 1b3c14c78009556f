"""Reads a manifest strictly by the types of `runtime.bundle.manifest`, and writes one back as JSON."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from runtime.bundle.manifest import MANIFEST_NAME, SCHEMA, DecoderSection, Limits, Manifest, VisionSection
from runtime.bundle.paths import check_relative
from runtime.errors import BundleError, ConfigError

_T = TypeVar("_T")
_REBUILD = "build the bundle again: python -m export.build_engines <checkpoint> --out <bundle> --force"


def parse_manifest(value: Any) -> Manifest:
    """Turns parsed JSON into a `Manifest`.

    Raises BundleError that names the field, its value and what was expected: an unknown schema version, an unknown or
    missing key, a wrong type, a value out of range, a file that is used but not listed, values that contradict.
    """
    if not isinstance(value, dict):
        raise _wrong("", value, "expected an object")
    if type(value.get("schema")) is int and value["schema"] == SCHEMA - 1:
        value = _from_schema_2(value)
    schema = value.get("schema")
    if isinstance(schema, bool) or schema != SCHEMA:
        hint = "update jetson-vlm" if isinstance(schema, int) and schema > SCHEMA else _REBUILD
        raise BundleError(
            f"{MANIFEST_NAME}: schema = {schema!r}: this version reads {SCHEMA - 1} and {SCHEMA}", hint=hint
        )
    extra = {key: item for key, item in value.items() if isinstance(key, str) and key.startswith("x-")}
    plain = {key: item for key, item in value.items() if key not in extra}
    manifest = _object(Manifest, plain, "", skip=("extra",))
    manifest = dataclasses.replace(manifest, extra=extra)
    _check_consistent(manifest)
    return manifest


def _from_schema_2(value: dict[str, Any]) -> dict[str, Any]:
    """Schema 3 adds the weights of the CUDA decoder."""
    decoder = value.get("decoder")
    if isinstance(decoder, dict):
        if "t16" in decoder:
            raise _wrong("decoder.t16", decoder["t16"], "unknown key in schema 2")
        decoder = {**decoder, "t16": None}
    return {**value, "schema": SCHEMA, "decoder": decoder}


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as JSON text: UTF-8, keys in schema order, indented by two; the same bytes for the same values."""
    value = dataclasses.asdict(manifest)
    value.update(value.pop("extra"))
    value["files"] = dict(sorted(value["files"].items()))
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _wrong(field: str, value: Any, expected: str) -> BundleError:
    shown = repr(value)
    if len(shown) > 120:
        shown = shown[:117] + "..."
    return BundleError(f"{MANIFEST_NAME}: {field or 'top level'} = {shown}: {expected}", hint=_REBUILD)


def _split(kind: Any) -> tuple[Any, Limits | None]:
    if typing.get_origin(kind) is Annotated:
        plain, limits = typing.get_args(kind)
        return plain, limits
    return kind, None


def _object(cls: type[_T], value: Any, where: str, skip: tuple[str, ...] = ()) -> _T:
    if not isinstance(value, dict):
        raise _wrong(where, value, "expected an object")
    kinds = {name: kind for name, kind in typing.get_type_hints(cls, include_extras=True).items() if name not in skip}
    for key, item in value.items():
        if key not in kinds and not key.startswith("x-"):
            raise _wrong(_join(where, key), item, "unknown key (only keys that begin with 'x-' are ignored)")
    arguments = {}
    for name, kind in kinds.items():
        if name not in value:
            raise BundleError(f"{MANIFEST_NAME}: {_join(where, name)}: missing", hint=_REBUILD)
        arguments[name] = _value(*_split(kind), value[name], _join(where, name))
    return cls(**arguments)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _value(kind: Any, limits: Limits | None, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):  # only "X | None" is used
        return None if value is None else _value(inner[0], limits, value, where)
    if origin is typing.Literal:
        if not isinstance(value, str) or value not in inner:
            raise _wrong(where, value, f"expected one of {', '.join(inner)}")
        return value
    if origin is tuple:
        return _list(inner, value, where, limits)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(inner[1], value, where, limits)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _object(typing.cast("type[Any]", kind), value, where)
    return _scalar(kind, value, where, limits)


def _list(inner: tuple[Any, ...], value: Any, where: str, limits: Limits | None) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(where, value, "expected a list")
    if inner[-1] is Ellipsis:
        _check_range(len(value), value, where, limits, "items")
        kinds = [inner[0]] * len(value)
    elif len(value) != len(inner):
        raise _wrong(where, value, f"expected {len(inner)} items")
    else:
        kinds = list(inner)
    return tuple(_value(kinds[i], None, item, f"{where}[{i}]") for i, item in enumerate(value))


def _mapping(kind: Any, value: Any, where: str, limits: Limits | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, value, "expected an object")
    _check_range(len(value), value, where, limits, "entries")
    for key in value:
        _check_text(key, where)
    return {key: _value(kind, None, item, f"{where}[{key!r}]") for key, item in value.items()}


def _scalar(kind: Any, value: Any, where: str, limits: Limits | None) -> Any:
    if kind is bool:
        if not isinstance(value, bool):
            raise _wrong(where, value, "expected true or false")
    elif kind is str:
        if not isinstance(value, str):
            raise _wrong(where, value, "expected text")
        _check_text(value, where)
        _check_range(len(value), value, where, limits, "characters")
    elif isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        raise _wrong(where, value, "expected a number" if kind is float else "expected a whole number")
    elif not -1e300 < value < 1e300:
        raise _wrong(where, value, "expected a finite number")
    else:
        _check_range(value, value, where, limits, "")
        return float(value) if kind is float else value
    return value


def _check_text(value: str, where: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _wrong(where, value, "expected text without half surrogate pairs")


def _check_range(size: float, value: Any, where: str, limits: Limits | None, unit: str) -> None:
    if limits is not None and not limits.low <= size <= limits.high:
        bounds = f"exactly {limits.low}" if limits.low == limits.high else f"from {limits.low} to {limits.high}"
        raise _wrong(where, value, f"expected {bounds} {unit}".rstrip())


def _check_consistent(manifest: Manifest) -> None:
    for relative in manifest.files:
        check_relative(relative, f"{MANIFEST_NAME}: files[{relative!r}]")
    for field, relative in used_files(manifest).items():
        if relative not in manifest.files:
            raise _wrong(field, relative, "this file is not listed in files")
    _check_vision(manifest.vision)
    _check_decoder(manifest.decoder)
    prompt, rows = manifest.prompt, manifest.decoder.token_embeds.shape[0]
    lists = {
        "bos_ids": prompt.bos_ids,
        "image.begin_ids": prompt.image.begin_ids,
        "image.end_ids": prompt.image.end_ids,
    }
    for name, ids in lists.items():
        if any(not 0 <= token < rows for token in ids):
            raise _wrong(f"prompt.{name}", ids, f"expected token ids below the {rows} rows of decoder.token_embeds")


def _check_vision(vision: VisionSection) -> None:
    tiling, pairs = vision.tiling, vision.projector.scale_inputs
    if tiling.tile_px != vision.tower.tile_px:
        expected = f"expected vision.tower.tile_px = {vision.tower.tile_px}"
        raise _wrong("vision.tiling.tile_px", tiling.tile_px, expected)
    if len(pairs) != len(tiling.scales_px):
        raise _wrong("vision.projector.scale_inputs", pairs, "expected one pair per item of vision.tiling.scales_px")
    try:
        vision.tiling_spec()
    except ConfigError as problem:
        raise BundleError(f"{MANIFEST_NAME}: vision.{problem.message}", hint=_REBUILD) from problem
    if any(value <= 0 for value in vision.preprocess.std):
        raise _wrong("vision.preprocess.std", vision.preprocess.std, "expected positive numbers")


def _check_decoder(decoder: DecoderSection) -> None:
    rows, width = decoder.token_embeds.shape
    if width != decoder.hidden or rows < decoder.vocab:  # a table may have rows that the head lacks
        expected = f"expected at least decoder.vocab = {decoder.vocab} rows of decoder.hidden = {decoder.hidden}"
        raise _wrong("decoder.token_embeds.shape", decoder.token_embeds.shape, expected)
    if decoder.heads % decoder.kv_heads:
        raise _wrong("decoder.kv_heads", decoder.kv_heads, f"expected a divisor of decoder.heads = {decoder.heads}")
    frequencies = decoder.rope_frequencies
    if 2 * len(frequencies) != decoder.head_dim or min(frequencies) <= 0:
        expected = f"expected decoder.head_dim / 2 = {decoder.head_dim // 2} positive numbers"
        raise _wrong("decoder.rope_frequencies", frequencies, expected)
    for kind, key, form in (("onnx", "onnx", decoder.onnx), ("cuda", "t16", decoder.t16)):
        if (kind in decoder.kinds) != (form is not None):
            expected = "an object because decoder.kinds names" if form is None else "null because decoder.kinds lacks"
            raise _wrong(f"decoder.{key}", form, f"expected {expected} {kind!r}")


def used_files(manifest: Manifest) -> dict[str, str]:
    """Field name -> relative path of each file that the manifest's groups name."""
    used = {
        "vision.tower.file": manifest.vision.tower.file,
        "vision.projector.file": manifest.vision.projector.file,
        "prompt.tokenizer": manifest.prompt.tokenizer,
        "decoder.token_embeds.file": manifest.decoder.token_embeds.file,
    }
    if manifest.decoder.onnx is not None:
        used["decoder.onnx.file"] = manifest.decoder.onnx.file
        used["decoder.onnx.data"] = manifest.decoder.onnx.data
    if manifest.decoder.t16 is not None:
        used["decoder.t16.file"] = manifest.decoder.t16.file
    return used


def parse_group(cls: type[_T], value: Any, where: str) -> _T:
    """One group of a manifest by itself (a dataclass of `runtime.bundle.manifest`), as strictly as in the whole."""
    return _object(cls, value, where)
