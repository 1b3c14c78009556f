"""A checkpoint's decoder: its shape, and where each of its tensors lies, whatever the folder calls them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from export.decoder.config import DecoderConfig, decoder_config
from export.decoder.quantization import CheckpointQuantization, read_quantization
from export.decoder.safetensors_file import COPY_HINT, F32
from export.decoder.stored_integers import Stem, StoredIntegers
from export.decoder.weight_files import WeightFiles
from kernels.packing import IntWeight
from runtime.errors import ExportError
from runtime.strict_json import read_json

MAX_CONFIG_BYTES = 4 << 20
CONFIG_HINT = "check config.json against the weights"
# Body prefix and head of: transformers LLaVA since 4.52, before, a plain causal LM (also VILA's llm/ and LLaVA's own).
LAYOUTS = (
    ("model.language_model.", "lm_head.weight"),
    ("language_model.model.", "language_model.lm_head.weight"),
    ("model.", "lm_head.weight"),
)
EMBEDS = "embed_tokens.weight"
IGNORED = re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # recomputed from rope_theta
PACKED_BITS = 4
LAYER = re.compile(r"layers\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer: canonical name (``layers.0.self_attn.q_proj``), weight shape [n, k], whether it has a bias."""

    name: str
    n: int
    k: int
    bias: bool


class DecoderCheckpoint:
    """Configuration and tensors of a decoder; tensors are read in pieces. A context manager.

    ``vocab`` is the number of rows of the head, ``embed_rows`` of the token table (a family may add tokens to the table
    alone); the configuration's ``vocab_size`` does not overrule what is stored. ``method`` says how the integers of the
    linears were chosen ("rtn": will be, by the exporter), ``head_bits`` in how many bits the head is to be stored.
    """

    def __init__(
        self, root: Path, folder: Path, config: DecoderConfig, files: WeightFiles, quantization: CheckpointQuantization
    ) -> None:
        self.root, self.folder, self.config = root, folder, config
        self._files, self._settings = files, quantization.files
        self._prefix, head = _layout(files)
        self._embeds = self._prefix + EMBEDS
        self._check_table(self._embeds)
        self.embed_rows = files.info(self._embeds).shape[0]
        self._integers = self._find_integers(quantization, head)
        self._head = self._find_head(head)
        self.tied = self._head == self._embeds
        self.vocab = files.info(self._head).shape[0] if self._head else config.vocab or self.embed_rows
        if self.vocab > self.embed_rows:
            message = f"{folder}: {head} has {self.vocab} rows, the token table only {self.embed_rows}"
            raise ExportError(message, hint=COPY_HINT)
        self._check_names()
        self._check_shapes()
        form = self._integers.form
        self.method = form.method if form is not None and quantization.form is None else quantization.method
        self.head_bits = quantization.head_bits
        if not self._head and self.head_bits != PACKED_BITS:
            message = f"{folder}: quantization.json has head_bits {self.head_bits}, but {head.removesuffix('.weight')}"
            raise ExportError(f"{message} is stored in {PACKED_BITS} bits", hint=CONFIG_HINT)

    def __enter__(self) -> DecoderCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the weight files."""
        self._files.close()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the decoder is read from: its configuration, what is said of its integers, its weights."""
        return (self.folder / "config.json", *self._settings, *self._files.paths)

    @property
    def group_size(self) -> int | None:
        """Weights that share a scale in the stored integers; None when the linears are floats."""
        return self._integers.group_size

    def layer(self, index: int) -> dict[str, Linear]:
        """The seven linears of a layer by short name: q, k, v, o, gate, up, down."""
        c, at = self.config, f"layers.{index}."
        wide, narrow = c.heads * c.head_dim, c.kv_heads * c.head_dim
        return {
            "q": Linear(f"{at}self_attn.q_proj", wide, c.hidden, c.qkv_bias),
            "k": Linear(f"{at}self_attn.k_proj", narrow, c.hidden, c.qkv_bias),
            "v": Linear(f"{at}self_attn.v_proj", narrow, c.hidden, c.qkv_bias),
            "o": Linear(f"{at}self_attn.o_proj", c.hidden, wide, c.o_bias),
            "gate": Linear(f"{at}mlp.gate_proj", c.ffn, c.hidden, c.mlp_bias),
            "up": Linear(f"{at}mlp.up_proj", c.ffn, c.hidden, c.mlp_bias),
            "down": Linear(f"{at}mlp.down_proj", c.hidden, c.ffn, c.mlp_bias),
        }

    def head(self) -> Linear:
        """The LM head, tied or not."""
        return Linear("lm_head", self.vocab, self.config.hidden, False)

    def linears(self) -> Iterator[Linear]:
        """All linears in canonical order: layer by layer q, k, v, o, gate, up, down, then the head."""
        for index in range(self.config.layers):
            yield from self.layer(index).values()
        yield self.head()

    def integers(self, linear: Linear) -> IntWeight | None:
        """The integers of a linear as they are stored, the whole matrix; None when it is stored in floats."""
        return self._integers.read(linear.name) if linear.name in self._integers else None

    def rows(self, linear: Linear, block_bytes: int) -> Iterator[F32]:
        """The rows of a linear's weight that is stored in floats, in blocks of about ``block_bytes`` in f32."""
        stored = self._head if linear.name == "lm_head" else f"{self._prefix}{linear.name}.weight"
        return self._files.iter_rows(stored, block_bytes)

    def bias(self, linear: Linear) -> F32:
        """A linear's bias, f32 [n]."""
        return self._files.read(f"{self._prefix}{linear.name}.bias")

    def norm(self, name: str) -> F32:
        """A norm's weight, f32 [hidden]: ``norm``, ``layers.0.input_layernorm``, …"""
        return self._files.read(f"{self._prefix}{name}.weight")

    def embed_blocks(self, block_bytes: int) -> Iterator[F32]:
        """The token table in blocks of rows, f32 [rows, hidden]."""
        return self._files.iter_rows(self._embeds, block_bytes)

    def _find_integers(self, quantization: CheckpointQuantization, head: str) -> StoredIntegers:
        layers = [linear for index in range(self.config.layers) for linear in self.layer(index).values()]
        stems = [Stem(linear.name, self._prefix + linear.name, linear.n, linear.k) for linear in layers]
        rows = self.config.vocab or self.embed_rows
        head_stem = Stem("lm_head", head.removesuffix(".weight"), rows, self.config.hidden)
        return StoredIntegers(self._files, quantization.form, stems, head_stem)

    def _find_head(self, head: str) -> str:
        """The stored name of a head in floats, which may be the token table; empty for one in integers."""
        if "lm_head" in self._integers:
            return ""
        if head not in self._files and not self.config.tied:
            raise ExportError(f"{self.folder}: there is no {head!r} and tie_word_embeddings is not set", hint=COPY_HINT)
        name = head if head in self._files else self._embeds
        self._check_table(name)
        return name

    def _expected(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of floats that the configuration demands, without the prefix, table and head apart."""
        hidden = (self.config.hidden,)
        shapes: dict[str, tuple[int, ...]] = {"norm.weight": hidden}
        for index in range(self.config.layers):
            shapes[f"layers.{index}.input_layernorm.weight"] = hidden
            shapes[f"layers.{index}.post_attention_layernorm.weight"] = hidden
            for linear in self.layer(index).values():
                if linear.name not in self._integers:
                    shapes[f"{linear.name}.weight"] = (linear.n, linear.k)
                if linear.bias:
                    shapes[f"{linear.name}.bias"] = (linear.n,)
        return shapes

    def _check_names(self) -> None:
        """Nothing is left over inside the layers: a tensor that we do not know would change the results."""
        expected, packed = self._expected(), self._integers.names()
        for name in sorted(self._files.names() - packed):
            short = name[len(self._prefix) :] if name.startswith(self._prefix) else ""
            if not LAYER.match(short) or short in expected or IGNORED.fullmatch(short):
                continue
            # AutoGPTQ gives every linear a bias, of zeros where the model has none.
            stem, _, kind = short.rpartition(".")
            if kind == "bias" and stem in self._integers and not self._files.read(name).any():
                continue
            message = f"{self.folder}: the tensor {name!r} does not belong to a {self.config.family} decoder"
            raise ExportError(f"{message} of {self.config.layers} layers", hint=CONFIG_HINT)

    def _check_shapes(self) -> None:
        wanted = {self._prefix + name: shape for name, shape in self._expected().items()}
        for name, shape in wanted.items():
            if self._files.info(name).shape != shape:
                found = list(self._files.info(name).shape)
                message = f"{self.folder}: {name} has the shape {found}, config.json makes it {list(shape)}"
                raise ExportError(message, hint=CONFIG_HINT)

    def _check_table(self, name: str) -> None:
        rows, width = self._files.info(name).shape, self.config.hidden
        if len(rows) != 2 or rows[1] != width or not rows[0]:
            message = f"{self.folder}: {name} has the shape {list(rows)}, expected [vocabulary, {width}]"
            raise ExportError(message, hint=CONFIG_HINT)


def open_decoder_checkpoint(root: Path) -> DecoderCheckpoint:
    """Opens the decoder of a checkpoint folder: headers and configuration are read and checked, weights are not.

    root: a transformers LLaVA folder, LLaVA's own, a VILA folder (its ``llm`` is used) or a causal LM, with linears in
    floats or in integers of any layout that :mod:`kernels.packing` knows. Raises ExportError.
    """
    folder = root / "llm" if (root / "llm").is_dir() else root
    path = folder / "config.json"
    raw = read_json(path, max_bytes=MAX_CONFIG_BYTES, error=ExportError, hint=COPY_HINT)
    config, quantization = decoder_config(raw, str(path)), read_quantization(root, folder, raw)
    files = WeightFiles(folder)
    try:
        return DecoderCheckpoint(root, folder, config, files, quantization)
    except BaseException:
        files.close()
        raise


def _layout(files: WeightFiles) -> tuple[str, str]:
    for prefix, head in LAYOUTS:
        if prefix + EMBEDS in files:
            return prefix, head
    known = ", ".join(prefix + EMBEDS for prefix, _ in LAYOUTS)
    raise ExportError(f"{files.folder}: there is no token table under a known name ({known})", hint=COPY_HINT)
