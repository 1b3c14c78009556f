"""Opening the decoder of a bundle: by kind, with the manifest's files, and every refusal."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from export.decoder import open_decoder_checkpoint, write_decoder
from runtime.bundle import Bundle, load_bundle, parse_manifest, write_bundle
from runtime.decoder import OnnxDecoder, open_decoder
from runtime.errors import BundleError, EngineError, InputError
from tests.decoder_models import Shape, save_checkpoint
from tests.runtime.bundle_example import manifest_json


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose decoder is real; its other files stand for themselves."""
    folder = tmp_path_factory.mktemp("bundle")
    checkpoint = save_checkpoint(folder / "checkpoint", Shape())

    def fill(target: Path) -> Any:
        with open_decoder_checkpoint(checkpoint) as opened:
            record = write_decoder(opened, target, max_seq_len=64, group_size=32)
        for name in ("tokenizer.json", "vision_tower.onnx", "vision_projector.onnx"):
            (target / name).write_bytes(b"{}")
        raw = copy.deepcopy(manifest_json())
        raw["decoder"], raw["quantization"] = record["decoder"], record["quantization"]
        return parse_manifest(raw)

    write_bundle(folder / "tiny.bundle", fill)
    return load_bundle(folder / "tiny.bundle", verify="none")


@pytest.mark.parametrize("kind", ["auto", "onnx"])
def test_the_manifest_leads_to_the_files(bundle: Bundle, kind: Any) -> None:
    decoder = open_decoder(bundle, kind=kind, threads=1, slots=2)
    assert isinstance(decoder, OnnxDecoder)
    assert (decoder.hidden, decoder.vocab, decoder.max_seq_len) == (128, 96, 64)
    assert np.isfinite(decoder.decode(1, [5, 6])).all()
    decoder.close()


def test_threads_and_spinning_reach_the_engine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime import decoder as package

    seen: list[Any] = []
    monkeypatch.setattr(package, "OnnxDecoder", lambda files, settings, *, slots: seen.append((settings, slots)))
    monkeypatch.setattr(package, "default_threads", lambda: 3)
    monkeypatch.setattr(package, "cores_are_ours", lambda: False)
    open_decoder(bundle)
    open_decoder(bundle, threads=7, spin=True, slots=5)
    assert [(s.threads, s.spin, slots) for s, slots in seen] == [(3, False, 1), (7, True, 5)]


def test_a_bundle_without_the_cuda_decoder_is_refused_by_name(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="has no decoder 'cuda', only onnx") as caught:
        open_decoder(bundle, kind="cuda")
    assert "--decoder both" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "tensorrt"}, "'tensorrt' is not known"),
        ({"threads": 0}, "0 threads"),
        ({"threads": 1000}, "1000 threads"),
        ({"threads": 1, "slots": 0}, "0 slots"),
    ],
)
def test_wrong_options_are_refused(bundle: Bundle, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_decoder(bundle, **options)


def test_a_bundle_without_this_decoder_is_refused(bundle: Bundle) -> None:
    section = replace(bundle.manifest.decoder, onnx=None, kinds=("cuda",))
    without = Bundle(bundle.path, replace(bundle.manifest, decoder=section))
    with pytest.raises(BundleError, match="no decoder 'onnx', only cuda"):
        open_decoder(without)


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match="needs onnxruntime") as caught:
        open_decoder(bundle)
    assert caught.value.hint == "pip install 'jetson-vlm[cpu]'"
