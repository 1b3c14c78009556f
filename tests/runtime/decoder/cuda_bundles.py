"""Bundles with T16 weights for tests of the CUDA decoder, and a device that fails when a test wants it to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.decoder import open_decoder_checkpoint, write_decoder
from kernels.driver.opening import open_device
from runtime.bundle import Bundle, load_bundle, parse_manifest, write_bundle
from runtime.bundle.manifest import Manifest
from runtime.decoder.cuda import CudaDecoder, CudaDecoderFiles
from runtime.decoder.options import CudaOptions
from runtime.session import Session
from tests.decoder_models import Shape, save_checkpoint, with_shape

ROOT = Path(__file__).resolve().parents[3]
DEMO_MODELS, DEMO_BUNDLES = ROOT / "models" / "demo", ROOT / "runtime" / "demo"
NVILA_8B = {
    "hidden": 3584,
    "layers": 28,
    "heads": 28,
    "kv_heads": 4,
    "head_dim": 128,
    "ffn": 18944,
    "vocab": 151651,
    "max_seq_len": 8192,
    "embed_rows": 151651,
    "group_size": 128,
    "head_bits": 4,
    "rope_frequencies": (1.0,) * 64,
}
SMALL = with_shape(heads=4, kv_heads=2, head_dim=64, hidden=128, ffn=256, vocab=200, context=1200)


def needs_compiler() -> None:
    """Skip where the emulator cannot compile."""
    if shutil.which("g++") is None:
        pytest.skip("the emulator compiles with g++, and there is none")


def demo_bundle(name: str, target: Path, *, accuracy_level: int = 0) -> Bundle:
    """The embedded bundle of a demo model, with its decoder written anew in both forms of the same integers."""
    embedded = DEMO_BUNDLES / name

    def fill(folder: Path) -> Manifest:
        shutil.copytree(embedded, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("decoder", "manifest.json"))
        manifest = json.loads((embedded / "manifest.json").read_text())
        with open_decoder_checkpoint(DEMO_MODELS / name) as checkpoint:
            length = manifest["decoder"]["max_seq_len"]
            record = write_decoder(
                checkpoint, folder, max_seq_len=length, kinds=("onnx", "cuda"), accuracy_level=accuracy_level
            )
        paths = [path for path in folder.rglob("*") if path.is_file()]
        unknown = {"bytes": 0, "sha256": "0" * 64}  # filled in when the bundle is written
        manifest["files"] = {path.relative_to(folder).as_posix(): unknown for path in paths}
        manifest |= {"schema": 3, "decoder": record["decoder"], "quantization": record["quantization"]}
        return parse_manifest(manifest)

    write_bundle(target, fill)
    return load_bundle(target, verify="none")


def small_files(
    folder: Path,
    shape: Shape = SMALL,
    *,
    group_size: int = 32,
    max_seq_len: int = 96,
    activations: str = "f16",
    head_bits: int = 4,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> CudaDecoderFiles:
    """A small random decoder on disk. ``change`` may alter the checkpoint's tensors before they are quantised."""
    weights = shape.weights()
    if change is not None:
        change(weights)
    checkpoint = save_checkpoint(folder / "checkpoint", shape, weights=weights)
    (checkpoint / "quantization.json").write_text(json.dumps({"head_bits": head_bits}))
    out = folder / "bundle"
    out.mkdir(parents=True)
    with open_decoder_checkpoint(checkpoint) as opened:
        record = write_decoder(
            opened,
            out,
            max_seq_len=max_seq_len,
            group_size=group_size,
            kinds=("cuda",),
            activations=activations,  # type: ignore[arg-type]
        )
    return files_of(out, record)


def files_of(out: Path, record: dict[str, Any]) -> CudaDecoderFiles:
    """The runtime's view of what ``write_decoder`` returned."""
    group, quantization = record["decoder"], record["quantization"]
    names = ("hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab", "max_seq_len", "rms_eps")
    return CudaDecoderFiles(
        weights=out / group["t16"]["file"],
        token_embeds=out / group["token_embeds"]["file"],
        token_embeds_dtype=group["token_embeds"]["dtype"],
        embed_rows=group["token_embeds"]["shape"][0],
        rope_frequencies=tuple(group["rope_frequencies"]),
        group_size=quantization["group_size"],
        head_bits=quantization["head_bits"],
        activations=group["t16"]["activations"],
        digest=quantization["digest"],
        **{name: group[name] for name in names},
    )


@contextmanager
def opened(files: CudaDecoderFiles, *, slots: int = 1, device: Any = None, **options: Any) -> Iterator[CudaDecoder]:
    """A decoder on an emulated device of its own, or on ``device``; closed at the end, and nothing left open."""
    chosen = device if device is not None else open_device("emulator")
    decoder = CudaDecoder(files, CudaOptions(**options), chosen, slots=slots, owned=False)
    try:
        yield decoder
    finally:
        decoder.close()
        assert not any(chosen.live().values()), chosen.live()
        if device is None:
            chosen.close()


def go_on_for_ever(session: Session) -> None:
    """No token ends an answer of this session any more."""
    encoder = session._pipeline._encoder
    encoder._prompt = replace(encoder._prompt, stop_ids=())


class FailingDevice:
    """A device whose ``fails_at``-th call of those named raises ``error``; all others go to the real device.

    ``calls``: how many of them there were. Launches are counted too when "launch" is named.
    """

    def __init__(self, device: Any, error: Exception, *names: str, fails_at: int = 0) -> None:
        self.device, self.error, self.names, self.fails_at, self.calls = device, error, names, fails_at, 0

    def count(self, name: str) -> None:
        if name in self.names:
            self.calls += 1
            if self.calls == self.fails_at:
                raise self.error

    def load_module(self, image: Any) -> Any:
        self.count("load_module")
        return FailingModule(self, self.device.load_module(image))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.device, name)
        if name not in self.names:
            return found

        def call(*args: Any, **keywords: Any) -> Any:
            self.count(name)
            return found(*args, **keywords)

        return call


class FailingModule:
    """A module of a failing device."""

    def __init__(self, owner: FailingDevice, module: Any) -> None:
        self.owner, self.module = owner, module

    def function(self, name: str) -> Any:
        function = self.module.function(name)
        launch = function.launch

        class Counted:
            @staticmethod
            def launch(*args: Any) -> None:
                self.owner.count("launch")
                launch(*args)

        return Counted

    def close(self) -> None:
        self.module.close()
