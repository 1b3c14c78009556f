"""``quantization.json`` beside a checkpoint, with and without stored integers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.decoder.quantization import CheckpointQuantization, read_quantization
from kernels.packing import QuantizedForm, quantization_config
from runtime.errors import ExportError

PACKED = {"quantization_config": quantization_config("autoawq-gemm", 64, ["lm_head"])}
FORM = QuantizedForm("autoawq-gemm", "awq", 64, ("lm_head",))


def read(root: Path, config: dict[str, Any], record: Any = None) -> CheckpointQuantization:
    if record is not None:
        (root / "quantization.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return read_quantization(root, root, config)


def test_a_plain_checkpoint_is_rounded_to_nearest_with_a_head_of_four_bits(tmp_path: Path) -> None:
    assert read(tmp_path, {}) == CheckpointQuantization(None, "rtn", 4, ())


@pytest.mark.parametrize("config", [PACKED, {"text_config": PACKED}, PACKED | {"text_config": {"model_type": "llama"}}])
def test_the_configuration_alone_says_form_and_method(tmp_path: Path, config: dict[str, Any]) -> None:
    assert read(tmp_path, config) == CheckpointQuantization(FORM, "awq", 4, ())


def test_the_record_chooses_the_head_and_knows_the_method(tmp_path: Path) -> None:
    record = {"schema": 1, "method": "rtn", "group_size": 64, "head_bits": 8, "layers": []}
    path = tmp_path / "quantization.json"
    assert read(tmp_path, PACKED, record) == CheckpointQuantization(FORM, "rtn", 8, (path,))
    assert read(tmp_path, PACKED, {"method": "gptq"}).method == "gptq"
    assert read(tmp_path, {}, {"method": "awq"}).method == "rtn"  # its linears are floats, whatever it says
    assert read(tmp_path, {}, {"head_bits": 16}) == CheckpointQuantization(None, "rtn", 16, (path,))


def test_a_record_of_another_part_leaves_the_head_at_four_bits(tmp_path: Path) -> None:
    assert read(tmp_path, PACKED, {"vision": {}}).head_bits == 4


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"head_bits": 5}, r"quantization.json: head_bits is 5, expected one of \(4, 8, 16\)"),
        ({"head_bits": True}, "head_bits is True"),
        ({"head_bits": "8"}, "head_bits is '8'"),
        ({"method": "magic"}, "method is 'magic', expected one of rtn, awq, gptq"),
        ({"group_size": 128}, "group_size is 128, the configuration says 64"),
        ([1], "is not a table"),
        ("{", "quantization.json"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        read(tmp_path, PACKED, record)
    assert caught.value.hint


def test_a_configuration_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="quantization_config: is not a table"):
        read(tmp_path, {"quantization_config": "awq"})
