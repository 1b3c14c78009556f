"""Which forms of the decoder a bundle gets, and what is said of the one that is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")

from export.decoder import open_decoder_checkpoint
from export.decoder.kinds import DecoderChoice, choose_kinds
from runtime.errors import ExportError
from tests.decoder_models import save_checkpoint, with_shape

TAKEN: dict[str, Any] = {"heads": 2, "kv_heads": 1, "head_dim": 64}


@pytest.mark.parametrize(
    ("choice", "kinds"),
    [("auto", ("onnx", "cuda")), ("both", ("onnx", "cuda")), ("cuda", ("cuda",)), ("onnx", ("onnx",))],
)
def test_what_is_asked_for_is_written_where_the_kernels_take_it(
    tmp_path: Path, choice: DecoderChoice, kinds: tuple[str, ...]
) -> None:
    with open_decoder_checkpoint(save_checkpoint(tmp_path, with_shape(**TAKEN))) as checkpoint:
        assert choose_kinds(choice, checkpoint) == (kinds, None)


@pytest.mark.parametrize(
    ("shape", "record", "reason"),
    [
        ({"head_dim": 32}, None, "head_dim is 32, its kernels take 64 and 128"),
        ({"heads": 9, "head_dim": 64, "kv_heads": 1}, None, "9 query heads share a key-value head"),
        ({**TAKEN, "mlp_bias": True}, None, "the linears gate, up and down have biases"),
        (TAKEN, '{"head_bits": 16}', "the LM head has 16 bits, its kernels take 4 and 8"),
    ],
)
def test_a_shape_that_the_kernels_do_not_take_is_named(
    tmp_path: Path, shape: dict[str, Any], record: str | None, reason: str
) -> None:
    save_checkpoint(tmp_path, with_shape(**shape))
    if record is not None:
        (tmp_path / "quantization.json").write_text(record)
    with open_decoder_checkpoint(tmp_path) as checkpoint:
        kinds, left_out = choose_kinds("auto", checkpoint)
        assert kinds == choose_kinds("onnx", checkpoint)[0] == ("onnx",)
        assert left_out is not None
        assert left_out.startswith(f"without the CUDA decoder: {reason}")
        asked: tuple[DecoderChoice, ...] = ("cuda", "both")
        for choice in asked:
            with pytest.raises(ExportError, match=f"--decoder {choice}: {reason}") as caught:
                choose_kinds(choice, checkpoint)
            assert caught.value.hint == "use --decoder onnx"


@pytest.mark.parametrize("head_bits", [4, 8])
def test_heads_of_four_and_eight_bits_are_taken(tmp_path: Path, head_bits: int) -> None:
    save_checkpoint(tmp_path, with_shape(**TAKEN))
    (tmp_path / "quantization.json").write_text(f'{{"head_bits": {head_bits}}}')
    with open_decoder_checkpoint(tmp_path) as checkpoint:
        assert choose_kinds("auto", checkpoint) == (("onnx", "cuda"), None)
