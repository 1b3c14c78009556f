"""Telemetry from copies of the files that boards carry; not run on a board."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from jetson.telemetry import read

ORIN_NANO: Mapping[str, str | bytes] = {
    "proc/device-tree/model": b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/meminfo": "MemTotal:        7802928 kB\nMemFree:          300000 kB\nMemAvailable:    5000000 kB\n",
    "sys/class/devfreq/17000000.gpu/device/of_node/name": b"gpu\0",
    "sys/class/devfreq/17000000.gpu/device/load": "437\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "612000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/class/devfreq/15340000.vic/device/of_node/name": b"vic\0",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "729600\n",
    "sys/class/hwmon/hwmon0/name": "nvme\n",
    "sys/class/hwmon/hwmon0/temp1_input": "40850\n",
    "sys/class/hwmon/hwmon1/name": "ina3221\n",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon1/in1_input": "5080\n",
    "sys/class/hwmon/hwmon1/curr1_input": "1192\n",
    "sys/class/hwmon/hwmon1/in1_enable": "1\n",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon1/in2_input": "5072\n",
    "sys/class/hwmon/hwmon1/curr2_input": "240\n",
    "sys/class/hwmon/hwmon1/in3_label": "VDD_SOC\n",
    "sys/class/hwmon/hwmon1/in3_input": "5072\n",
    "sys/class/hwmon/hwmon1/curr3_input": "296\n",
    "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages\n",
    "sys/class/hwmon/hwmon1/in7_input": "1\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48562\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "46093\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",  # switched off: its temp cannot be read
    "sys/class/thermal/thermal_zone10/type": "tj-thermal\n",
    "sys/class/thermal/thermal_zone10/temp": "48562\n",
    "var/lib/nvpmodel/status": "pmode:0001\n",
    "etc/nvpmodel.conf": "< PARAM TYPE=FILE NAME=CPU_ONLINE >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n\n< PM_CONFIG DEFAULT=1 >\n",
}


def tree(root: Path, files: Mapping[str, str | bytes] = ORIN_NANO, **changes: str | bytes) -> Path:
    for name, content in {**files, **changes}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def test_an_orin_nano_says_everything(tmp_path: Path) -> None:
    assert read(tree(tmp_path)) == {
        "model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "power_mode": "25W",
        "gpu_percent": 43.7,
        "gpu_mhz": 612,
        "gpu_max_mhz": 1020,
        "ram_used_bytes": 2802928 * 1024,
        "ram_total_bytes": 7802928 * 1024,
        "power_w": 6.055,
        "cpu": {"0_mhz": 1510, "4_mhz": 730},
        "rails": {"vdd_in_w": 6.055, "vdd_cpu_gpu_cv_w": 1.217, "vdd_soc_w": 1.501},
        "temperatures": {"cpu_c": 48.6, "gpu_c": 46.1, "tj_c": 48.6},
    }


def test_the_root_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path)
    monkeypatch.setenv("VLM_BOARD_ROOT", str(tmp_path))
    found = read()
    assert found is not None and found["gpu_percent"] == 43.7


@pytest.mark.parametrize("model", [None, b"Raspberry Pi 5 Model B Rev 1.0\0", b"\0"])
def test_other_machines_have_none(tmp_path: Path, model: bytes | None) -> None:
    tree(tmp_path)
    path = tmp_path / "proc/device-tree/model"
    path.unlink() if model is None else path.write_bytes(model)
    assert read(tmp_path) is None
    assert read(tmp_path / "nothing") is None


@pytest.mark.parametrize("name", ["gv11b", "gp10b", "ga10b", "gb10b"])
def test_the_gpu_is_known_by_its_name_in_the_device_tree(tmp_path: Path, name: str) -> None:
    tree(tmp_path)
    (tmp_path / "sys/class/devfreq/17000000.gpu/device/of_node/name").write_text(f"{name}\0")
    found = read(tmp_path)
    assert found is not None and found["gpu_percent"] == 43.7


def test_thor_has_a_clock_and_no_load(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "proc/device-tree/model": b"NVIDIA Jetson AGX Thor Developer Kit\0",
            "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000",
            "sys/class/devfreq/gpu-nvd-0/cur_freq": "900000000",
        },
    )
    assert read(tmp_path) == {"model": "NVIDIA Jetson AGX Thor Developer Kit", "gpu_mhz": 1575}


def test_rails_that_are_off_or_not_connected_are_left_out_and_there_may_be_no_total(tmp_path: Path) -> None:
    monitor = "sys/class/hwmon/hwmon1"
    changes = {f"{monitor}/in1_enable": "0", f"{monitor}/in2_label": "NC", f"{monitor}/curr3_input": "-16\n"}
    found = read(tree(tmp_path, **changes))
    assert found is not None and "power_w" not in found
    assert found["rails"] == {"vdd_soc_w": -0.081}


def test_sensors_without_a_value_and_impossible_temperatures_are_left_out(tmp_path: Path) -> None:
    found = read(tree(tmp_path, **{"sys/class/thermal/thermal_zone1/temp": "-256000\n"}))
    assert found is not None and found["temperatures"] == {"cpu_c": 48.6, "tj_c": 48.6}


def test_a_mode_that_the_catalogue_lacks_is_a_number(tmp_path: Path) -> None:
    tree(tmp_path, **{"var/lib/nvpmodel/status": "pmode:0007 fmode:quiet"})
    found = read(tmp_path)
    assert found is not None and found["power_mode"] == "7"


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_missing_or_damaged_nothing_is_raised_and_the_rest_is_there(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    tree(tmp_path)
    names = [name for name in ORIN_NANO if "model" not in name.split("/")[-1]]
    for name in rng.sample(names, 12):
        path = tmp_path / name
        kind = rng.choice(["missing", "folder", "bytes", "empty", "long"])
        if not path.exists():
            continue
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind != "missing":
            path.write_bytes({"bytes": rng.randbytes(40), "empty": b"", "long": b"9" * 100_000}[kind])
    gone = rng.choice(["sys/class/hwmon", "sys/class/thermal", "sys/devices", "sys/class/devfreq"])
    shutil.rmtree(tmp_path / gone)
    (tmp_path / gone).write_text("not a folder")
    found = read(tmp_path)
    assert found is not None and found["model"]
    assert None not in found.values()
