"""What the sensors of an NVIDIA Jetson say: GPU, clocks, power, temperatures, memory, power mode.

The runtime finds `read` through the entry point group ``vlm.telemetry`` and never imports it. It reads small files of
sysfs, procfs and nvpmodel, needs no rights and starts no program. Written from the documented formats of these files
(devfreq, hwmon's ina3221, thermal zones, cpufreq) and tested on copies of them; not run on a board.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

GPU_NAMES = ("gv11b", "gp10b", "ga10b", "gb10b", "gpu")  # of the device tree: Xavier, TX2, Orin, Thor, Nano
GPU_CLOCKS = ("gpu-gpc-0",)  # Thor: a clock without load
INPUT_RAILS = ("VDD_IN", "POM_5V_IN")  # what the module takes altogether
_INVALID_BELOW_MC = -100_000  # a sensor whose part is switched off
_LONGEST = 1 << 16  # bytes; these files are small
_MOST_DIGITS = 18


def read(root: Path | None = None) -> dict[str, object] | None:
    """The present values by name, None on a machine that is not a Jetson; a value that cannot be read is left out.

    Names end with their unit (``gpu_percent``, ``gpu_mhz``, ``power_w``, ``ram_used_bytes``); ``cpu``, ``rails`` and
    ``temperatures`` are mappings. ``root`` stands for ``/``; VLM_BOARD_ROOT names another one where it is not given.
    Never raises for files that are missing, unreadable or not of the documented form.
    """
    base = root if root is not None else Path(os.environ.get("VLM_BOARD_ROOT", "/"))
    model = _text(base / "proc/device-tree/model")
    if model is None or "jetson" not in model.lower():
        return None
    rails = _rails(base)
    groups = {"cpu": _cpu_clocks(base), "rails": rails, "temperatures": _temperatures(base)}
    found: dict[str, object] = {"model": model, "power_mode": _power_mode(base), **_gpu(base), **_memory(base)}
    found["power_w"] = next((watts for name in INPUT_RAILS if (watts := rails.get(f"{_name(name)}_w"))), None)
    found |= {name: group for name, group in groups.items() if group}
    return {name: value for name, value in found.items() if value is not None}


def _gpu(base: Path) -> dict[str, object]:
    """Load in percent (the file counts in thousandths) and clocks."""
    for folder in _folders(base / "sys/class/devfreq", "*"):
        known = _text(folder / "device/of_node/name") in GPU_NAMES or folder.name in GPU_CLOCKS
        if not known:
            continue
        load, clock, fastest = (_number(folder / name) for name in ("device/load", "cur_freq", "max_freq"))
        return {
            "gpu_percent": None if load is None else load / 10,
            "gpu_mhz": None if clock is None else round(clock / 1e6),
            "gpu_max_mhz": None if fastest is None else round(fastest / 1e6),
        }
    return {}


def _cpu_clocks(base: Path) -> dict[str, int]:
    """Each cluster by the number of its first core: its present clock."""
    clocks: dict[str, int] = {}
    for folder in _folders(base / "sys/devices/system/cpu/cpufreq", "policy*"):
        khz = _number(folder / "scaling_cur_freq")
        if khz is not None:
            clocks[f"{folder.name.removeprefix('policy')}_mhz"] = round(khz / 1e3)
    return clocks


def _rails(base: Path) -> dict[str, float]:
    """Watts of each supply: millivolts times milliamperes. Source: Documentation/hwmon/ina3221 of Linux."""
    rails: dict[str, float] = {}
    for folder in _folders(base / "sys/class/hwmon", "hwmon*"):
        if _text(folder / "name") != "ina3221":
            continue
        for channel in (1, 2, 3):
            label = _text(folder / f"in{channel}_label")
            millivolts, milliamperes = _number(folder / f"in{channel}_input"), _number(folder / f"curr{channel}_input")
            off = _number(folder / f"in{channel}_enable") == 0
            if label and label != "NC" and not off and millivolts is not None and milliamperes is not None:
                rails[f"{_name(label)}_w"] = round(millivolts * milliamperes / 1e6, 3)
    return rails


def _temperatures(base: Path) -> dict[str, float]:
    """Degrees Celsius of each thermal zone; one whose part is switched off has none."""
    found: dict[str, float] = {}
    for folder in _folders(base / "sys/class/thermal", "thermal_zone*"):
        kind, millidegrees = _text(folder / "type"), _number(folder / "temp")
        if kind and millidegrees is not None and millidegrees > _INVALID_BELOW_MC:
            found[f"{_name(re.sub(r'[-_]?thermal$', '', kind, flags=re.IGNORECASE))}_c"] = round(millidegrees / 1e3, 1)
    return found


def _memory(base: Path) -> dict[str, object]:
    """CPU and GPU share it."""
    lines = dict(re.findall(r"^(\w+):\s+(\d{1,15}) kB$", _text(base / "proc/meminfo") or "", re.MULTILINE))
    if not {"MemTotal", "MemAvailable"} <= lines.keys():
        return {}
    total, available = int(lines["MemTotal"]) * 1024, int(lines["MemAvailable"]) * 1024
    return {"ram_used_bytes": total - available, "ram_total_bytes": total}


def _power_mode(base: Path) -> str | None:
    """The mode's name, or its number where nvpmodel's catalogue does not name it."""
    chosen = re.search(r"pmode:(\d{1,9})", _text(base / "var/lib/nvpmodel/status") or "")
    if chosen is None:
        return None
    number = int(chosen[1])
    catalogue = _text(base / "etc/nvpmodel.conf") or ""
    modes = re.findall(r"^<\s*POWER_MODEL\s+ID=(\d{1,9})\s+NAME=(\S+)\s*>", catalogue, re.MULTILINE)
    return next((name for identity, name in modes if int(identity) == number), str(number))


def _name(label: str) -> str:
    """A label of the kernel as part of a name: small letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")


def _folders(parent: Path, pattern: str) -> Iterator[Path]:
    """Folders in the order of their numbers."""
    try:
        found = list(parent.glob(pattern))
    except OSError:
        return
    yield from sorted(found, key=lambda path: (len(path.name), path.name))


def _number(path: Path) -> int | None:
    text = _text(path)
    try:
        return None if text is None or len(text) > _MOST_DIGITS else int(text)
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    """The beginning of a file without the NUL that ends strings of the device tree; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST).decode("utf-8", errors="replace").strip("\0 \n")
    except OSError:  # missing, or a sensor that is switched off (EAGAIN)
        return None
