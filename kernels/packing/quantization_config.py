"""A checkpoint's ``quantization_config``: read to the layout that it stands for, and written for one.

form = read_quantization_config(config["quantization_config"])     # form.format == "autoawq-gemm"
config["quantization_config"] = quantization_config("autoawq-gemm", 128, ["lm_head"])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BITS = 4
AWQ_VERSIONS = {
    "gemm": "autoawq-gemm",
    "gemv": "autoawq-gemv",
    "gemv_fast": "llm-awq-v2",
    "llm-awq": "llm-awq-v2",
}
GPTQ_FORMATS = {"gptq": "gptq", "gptq_v2": "gptq-v2"}
WHOLE_ROW = -1


@dataclass(frozen=True, slots=True)
class QuantizedForm:
    """How a checkpoint's linears are stored.

    format: a layout of ``CHECKPOINT_FORMATS``; method: "awq", "gptq" or "compressed-tensors" (which does not say what
    chose the integers); group_size: None for one group per row; kept: modules that stay unquantised, as the
    configuration names them (parts of names; in compressed-tensors also patterns that begin with ``re:``).
    """

    format: str
    method: str
    group_size: int | None
    kept: tuple[str, ...] = ()


def read_quantization_config(config: Mapping[str, Any]) -> QuantizedForm:
    """Reads a ``quantization_config``, AutoAWQ's ``quant_config.json`` or GPTQ's ``quantize_config.json``.

    Raises ValueError that names the key, its value and what can be read: another method, other than four bits,
    activation order, per-module settings, quantised activations, symmetric AWQ.
    """
    method = config.get("quant_method")
    if method is None:  # the older files of their own are not marked
        method = "awq" if "w_bit" in config else "gptq" if "desc_act" in config else None
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise ValueError(f"quant_method is {method!r}; {', '.join(_READERS)} can be read")
    return reader(config)


def quantization_config(format: str, group_size: int, kept: Sequence[str]) -> dict[str, Any]:
    """The ``quantization_config`` of a checkpoint whose linears but ``kept`` lie in a layout, as JSON values.

    Raises ValueError for a layout that no checkpoint is stored in.
    """
    if format == "compressed-tensors":
        return _compressed_config(group_size, kept)
    common = {"bits": BITS, "group_size": group_size}
    for names, method in ((AWQ_VERSIONS, "awq"), (GPTQ_FORMATS, "gptq")):
        name = next((name for name, of in names.items() if of == format), None)
        if name is not None and method == "awq":
            extra = {"zero_point": True, "version": name, "modules_to_not_convert": list(kept)}
            return {"quant_method": method, **common, **extra}
        if name is not None:
            return {"quant_method": method, **common, "desc_act": False, "sym": False, "checkpoint_format": name}
    raise ValueError(f"no checkpoint is stored in the layout {format!r}")


def _compressed_config(group_size: int, kept: Sequence[str]) -> dict[str, Any]:
    weights = {
        "num_bits": BITS,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": group_size,
        "dynamic": False,
        "actorder": None,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(kept),
        "kv_cache_scheme": None,
    }


def _read_awq(config: Mapping[str, Any]) -> QuantizedForm:
    _demand("bits", config.get("bits", config.get("w_bit", BITS)), BITS)
    _demand("zero_point", config.get("zero_point", True), True)
    version = config.get("version") or config.get("format") or "gemm"
    if config.get("backend") == "llm-awq":
        version = "llm-awq"
    format = AWQ_VERSIONS.get(version.lower()) if isinstance(version, str) else None
    if format is None:
        raise ValueError(f"version is {version!r}; {', '.join(AWQ_VERSIONS)} can be read")
    group_size = _group_size(config.get("group_size", config.get("q_group_size", 128)))
    return QuantizedForm(format, "awq", group_size, _names("modules_to_not_convert", config))


def _read_gptq(config: Mapping[str, Any]) -> QuantizedForm:
    _demand("bits", config.get("bits"), BITS)
    _demand("desc_act", config.get("desc_act") or False, False)
    if config.get("dynamic"):
        raise ValueError("dynamic gives modules settings of their own; one setting for all can be read")
    stored = config.get("checkpoint_format") or config.get("format") or "gptq"
    format = GPTQ_FORMATS.get(stored) if isinstance(stored, str) else None
    if format is None or config.get("is_marlin_format"):
        raise ValueError(f"checkpoint_format is {stored!r}; {', '.join(GPTQ_FORMATS)} can be read, marlin cannot")
    return QuantizedForm(format, "gptq", _group_size(config.get("group_size", 128)))


def _read_compressed(config: Mapping[str, Any]) -> QuantizedForm:
    groups = config.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, Mapping) else []
    if not schemes or not all(isinstance(scheme, Mapping) for scheme in schemes):
        raise ValueError(f"config_groups is {groups!r}; expected a table of schemes")
    for key in ("kv_cache_scheme", "transform_config"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]!r}; only weights that are quantised can be read")
    sizes = {_scheme_group_size(scheme) for scheme in schemes}
    if len(sizes) > 1:
        shown = ", ".join("whole rows" if size is None else str(size) for size in sorted(sizes, key=lambda s: s or 0))
        raise ValueError(f"config_groups have several group sizes ({shown}); one for all can be read")
    for stored in (config.get("format", "pack-quantized"), *(s["format"] for s in schemes if s.get("format"))):
        if stored not in ("pack-quantized", "mixed-precision"):
            raise ValueError(f"format is {stored!r}; 'pack-quantized' can be read")
    return QuantizedForm("compressed-tensors", "compressed-tensors", sizes.pop(), _names("ignore", config))


def _scheme_group_size(scheme: Mapping[str, Any]) -> int | None:
    for key in ("input_activations", "output_activations"):
        if scheme.get(key):
            raise ValueError(f"{key} is {scheme[key]!r}; only weights that are quantised can be read")
    weights = scheme.get("weights")
    if not isinstance(weights, Mapping):
        raise ValueError(f"weights is {weights!r}; expected a table")
    _demand("num_bits", weights.get("num_bits"), BITS)
    _demand("type", weights.get("type", "int"), "int")
    if weights.get("actorder") not in (None, False, "weight", "static"):  # these two leave the storage in order
        raise ValueError(f"actorder is {weights['actorder']!r}; inputs in their own order can be read")
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else None)
    if strategy == "channel":
        return None
    if strategy != "group":
        raise ValueError(f"strategy is {strategy!r}; 'group' and 'channel' can be read")
    return _group_size(weights.get("group_size"))


def _demand(key: str, value: Any, wanted: Any) -> None:
    if type(value) is not type(wanted) or value != wanted:
        raise ValueError(f"{key} is {value!r}; only {wanted!r} can be read")


def _group_size(value: Any) -> int | None:
    if type(value) is not int or (value < 1 and value != WHOLE_ROW):
        raise ValueError(f"group_size is {value!r}; expected a positive number or {WHOLE_ROW} for whole rows")
    return None if value == WHOLE_ROW else value


def _names(key: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    value = config.get(key) or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{key} is {value!r}; expected a list of names")
    return tuple(value)


_READERS: Mapping[str, Callable[[Mapping[str, Any]], QuantizedForm]] = {
    "awq": _read_awq,
    "gptq": _read_gptq,
    "compressed-tensors": _read_compressed,
}
