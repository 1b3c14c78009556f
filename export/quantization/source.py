"""The decoder that is quantised: where its tensors lie in the checkpoint's files, read in pieces. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from export.decoder import DecoderCheckpoint, open_decoder_checkpoint
from export.decoder.checkpoint import EMBEDS, LAYOUTS
from export.decoder.safetensors_file import F32, SafetensorsFile
from runtime.bundle.tensor_header import TensorInfo
from runtime.errors import ExportError
from runtime.strict_json import read_json

MAX_CONFIG_BYTES = 4 << 20
BLOCK_BYTES = 64 << 20  # of f32 values that are in memory at a time
_CHUNK_BYTES = 16 << 20
NORMS = ("input_layernorm", "post_attention_layernorm")
_INTEGER_NAMES = (".qweight", ".weight_packed")
_ORIGINAL = "quantise the checkpoint that it was made from"


class DecoderSource:
    """Configuration and tensors of an unquantised decoder. A context manager.

    ``folder`` holds the decoder's config.json and weights (the checkpoint itself, or its ``llm``); ``tensors`` are all
    tensors of these files in stored order, in a one-file LLaVA also tower and projector; ``prefix`` stands before
    ``layers.0.…`` in their names.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "llm" if (root / "llm").is_dir() else root
        self.raw_config = read_config(self.folder / "config.json")
        _refuse_quantised(self.folder, self.raw_config)
        with ExitStack() as stack:
            self.decoder: DecoderCheckpoint = stack.enter_context(open_decoder_checkpoint(root))
            self.weights = tuple(path for path in self.decoder.files if path.suffix == ".safetensors")
            self._of: dict[str, SafetensorsFile] = {}
            for path in self.weights:
                file = stack.enter_context(SafetensorsFile(path))
                by_place = sorted(file.tensors, key=lambda name, file=file: file.tensors[name].begin)  # type: ignore[misc]
                self._of |= dict.fromkeys(by_place, file)
            self._refuse_integers()
            self.prefix, head = next(pair for pair in LAYOUTS if pair[0] + EMBEDS in self._of)
            self.head = self.prefix + EMBEDS if self.decoder.tied else head
            self._open = stack.pop_all()

    def __enter__(self) -> DecoderSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """All tensors of the decoder's files by name, file by file as they are stored."""
        return {name: file.tensors[name] for name, file in self._of.items()}

    def layer_tensors(self, index: int) -> dict[str, str]:
        """Stored names of a layer's tensors by their names inside the layer (``self_attn.q_proj.weight``)."""
        at = f"layers.{index}."
        inside = [f"{norm}.weight" for norm in NORMS]
        for linear in self.decoder.layer(index).values():
            short = linear.name.removeprefix(at)
            inside += [f"{short}.weight"] + ([f"{short}.bias"] if linear.bias else [])
        return {name: f"{self.prefix}{at}{name}" for name in inside}

    def iter_rows(self, name: str, block_bytes: int) -> Iterator[F32]:
        """The rows of a stored tensor in blocks of about ``block_bytes`` in f32."""
        return self._of[name].iter_rows(name, block_bytes)

    def embeds(self, ids: Sequence[int]) -> F32:
        """Rows of the token table, f32 [n, hidden]. Raises ExportError for an id that it does not have."""
        name = self.prefix + EMBEDS
        rows = np.empty((len(ids), self.decoder.config.hidden), np.float32)
        for place, token in enumerate(ids):
            if not 0 <= token < self.decoder.embed_rows:
                raise ExportError(
                    f"{self.folder}: the tokenizer makes the id {token}, the token table has "
                    f"{self.decoder.embed_rows} rows",
                    hint="check tokenizer.json against the weights",
                )
            rows[place] = self._of[name].read_rows(name, token, token + 1)[0]
        return rows

    def raw(self, name: str) -> Iterator[bytes]:
        """The stored bytes of a tensor in pieces."""
        return read_pieces(self._of[name], name)

    def _refuse_integers(self) -> None:
        for name in self._of:
            if name.endswith(_INTEGER_NAMES):
                raise ExportError(f"{self.folder}: is quantised already: it holds {name!r}", hint=_ORIGINAL)


def read_pieces(file: SafetensorsFile, name: str) -> Iterator[bytes]:
    """The stored bytes of a tensor in pieces. Raises ExportError when the file is cut short meanwhile."""
    info = file.tensors[name]
    with file.path.open("rb") as opened:
        opened.seek(info.begin)
        left = info.end - info.begin
        while left:
            piece = opened.read(min(left, _CHUNK_BYTES))
            if not piece:
                raise ExportError(f"{file.path}: ends inside {name}", hint="copy or download the checkpoint again")
            left -= len(piece)
            yield piece


def read_config(path: Path) -> dict[str, Any]:
    """The table in a config.json. Raises ExportError that names the file."""
    value = read_json(path, max_bytes=MAX_CONFIG_BYTES, error=ExportError, hint="copy the checkpoint again")
    if not isinstance(value, dict):
        raise ExportError(f"{path}: expected an object", hint="copy the checkpoint again")
    return value


def check_group_size(source: DecoderSource, group_size: int) -> None:
    """Raises ExportError for the first linear whose inputs the groups do not divide."""
    linears = list(source.decoder.linears())
    for linear in linears:
        if linear.k % group_size:
            fits = [size for size in (128, 64, 32) if all(other.k % size == 0 for other in linears)]
            raise ExportError(
                f"--group-size {group_size}: {linear.name} has {linear.k} inputs, which it does not divide",
                hint=f"use --group-size {fits[0]}" if fits else "no group size of 128, 64 or 32 divides all layers",
            )


def _refuse_quantised(folder: Path, config: dict[str, Any]) -> None:
    inner = config.get("text_config")
    for table in (config, inner if isinstance(inner, dict) else {}):
        described = table.get("quantization_config")
        if described:
            method = described.get("quant_method") if isinstance(described, dict) else described
            raise ExportError(f"{folder}/config.json: is quantised already ({method})", hint=_ORIGINAL)
