"""VILA and NVILA: a vision tower with tiles or S², a projector, and a Llama or Qwen2 decoder.

The mixins are in ``models.nvila_model`` and ``models.nvila_generation``; ``NVILAQwen2`` and ``VilaLlama`` are the
concrete models.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.encoders import BasicImageEncoder, BasicVideoEncoder, TSPVideoEncoder
from models.int4 import Int4Linear, quantized_decoder
from models.nvila_config import LlavaConfig, get_model_config, parse_dtype
from models.nvila_decoder import decoder_kind, load_decoder
from models.nvila_generation import LlavaMetaForCausalLM
from models.nvila_model import LlavaMetaModel
from models.nvila_stream import StreamState
from runtime.errors import ExportError, PromptError, UsageError

__all__ = [
    "BasicImageEncoder",
    "BasicVideoEncoder",
    "LlavaConfig",
    "LlavaMetaForCausalLM",
    "LlavaMetaModel",
    "NVILAQwen2",
    "TSPVideoEncoder",
    "VilaLlama",
    "VilaModel",
    "get_model_config",
    "load_vila",
]
_logger = logging.getLogger(__name__)


class VilaModel(nn.Module, LlavaMetaModel, LlavaMetaForCausalLM):
    """VILA and NVILA from a configuration whose parts are on disk (``load_pretrained``), whatever their decoder.

    ``llm=False`` leaves the decoder out; the caller installs one as ``llm``. ``quantization`` says what
    ``quant_llm=True`` runs on: "awq" (or "gptq", "compressed-tensors") on a checkpoint that holds integers, "none"
    until int4 weights are made, then "rtn". ``head_bits``: those of the int4 head, as the exporter stores it.
    """

    decoder_kind: str

    def __init__(self, config: LlavaConfig, llm: bool = True) -> None:
        super().__init__()
        self.config = config
        self.is_loaded = False
        self.quantization = "none"
        self.head_bits = 4
        self.quantization_note: dict[str, Any] = {}  # the checkpoint's quantization.json
        self._group_size = 128
        self._int4: list[Any] = []  # in a list, so that it is no submodule: its tensors are made, not stored
        self._without_full = ""  # why there are no full weights
        self._stream = StreamState()
        self.init_vlm(config)
        self.llm = self._load_llm(Path(self.llm_cfg), parse_dtype(config.model_dtype)) if llm else None
        self.post_config()
        self.eval()

    def decoder(self, quant_llm: bool) -> Any:
        """The causal language model on integer weights (made by round to nearest on first use) or on the full ones.

        Where there are integers alone, False gives them too and says so once: they are what the weights are.
        """
        if self.llm is None:
            raise UsageError("the model has no decoder", hint="load it with llm=True")
        if quant_llm:
            return self._integers()
        if self._without_full:
            _logger.warning("%s: quant_llm=False runs on the dequantised integer weights", self._without_full)
            self._without_full = ""
        return self.llm

    def _integers(self) -> Any:
        if not self._int4:
            self._int4.append(quantized_decoder(self.llm, self._group_size, self.head_bits))
            if self.quantization == "none":
                self.quantization = "rtn"
        return self._int4[0]

    def release_full_weights(self) -> None:
        """Keep the integer weights alone; embeddings, norms and biases stay as they are."""
        self.llm = self.decoder(True)
        self._stream = StreamState()  # the cache may be the full decoder's, and holds on to it
        self._without_full = "the full weights were released"

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Rows of the token table [.., D]. Raises PromptError for an id that it does not have."""
        table = self.get_llm().get_input_embeddings()
        if ids.numel() and int(ids.max()) >= table.num_embeddings:
            raise PromptError(f"token {int(ids.max())} is beyond the decoder's {table.num_embeddings} embeddings")
        rows: Tensor = table(ids)
        return rows

    @property
    def device(self) -> torch.device:
        return self.vision_tower.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_tower.dtype

    def _apply(self, fn: Any, recurse: bool = True) -> VilaModel:
        super()._apply(fn, recurse)
        for twin in self._int4:
            if twin is not self.llm:
                twin._apply(fn)
        return self

    def _load_llm(self, directory: Path, dtype: torch.dtype) -> Any:
        if (kind := decoder_kind(directory)) != self.decoder_kind:
            other = MODELS[kind].__name__
            raise ExportError(f"{directory}: a decoder of type {kind!r}", hint=f"{other} loads it, or load_checkpoint")
        llm, found = load_decoder(directory, dtype)
        self.quantization, self.head_bits, self.quantization_note = found.method, found.head_bits, dict(found.note)
        if found.method != "none":
            self._without_full = f"{directory} holds integer weights alone"
            self._group_size = next(m.group_size for m in llm.modules() if isinstance(m, Int4Linear))
        return llm


class NVILAQwen2(VilaModel):
    """NVILA: SigLIP with tiles or dynamic S², a downsampling projector and Qwen2."""

    decoder_kind = "qwen2"


class VilaLlama(VilaModel):
    """VILA-1.5: SigLIP or CLIP, ``mlp_downsample`` or ``mlp2x_gelu``, and Llama."""

    decoder_kind = "llama"


MODELS: dict[str, type[VilaModel]] = {model.decoder_kind: model for model in (NVILAQwen2, VilaLlama)}


def load_vila(directory: Path, dtype: torch.dtype | None = None) -> VilaModel:
    """The model of a three-folder checkpoint, its class decided by its decoder. Raises ExportError."""
    config = LlavaConfig.from_directory(directory)
    model: VilaModel = MODELS[decoder_kind(Path(get_model_config(config)[0]))].load_pretrained(config, dtype=dtype)
    return model
