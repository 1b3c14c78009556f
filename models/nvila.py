"""NVILA: SigLIP with tiles or dynamic S², a downsampling projector and Qwen2.

The mixins are in ``models.nvila_model`` and ``models.nvila_generation``; ``NVILAQwen2`` is the concrete model.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, Qwen2Config, Qwen2ForCausalLM
from transformers.initialization import no_init_weights

from models.encoders import BasicImageEncoder, BasicVideoEncoder, TSPVideoEncoder
from models.int4 import quantized_decoder
from models.nvila_bench import measure, report
from models.nvila_config import LlavaConfig, get_model_config, parse_dtype
from models.nvila_generation import LlavaMetaForCausalLM
from models.nvila_model import LlavaMetaModel
from models.nvila_stream import StreamState
from models.prompts import Prompt
from models.weights import default_dtype, load_strict, read_config
from runtime.errors import ExportError, UsageError

__all__ = [
    "BasicImageEncoder",
    "BasicVideoEncoder",
    "LlavaConfig",
    "LlavaMetaForCausalLM",
    "LlavaMetaModel",
    "NVILAQwen2",
    "TSPVideoEncoder",
    "get_model_config",
]
_logger = logging.getLogger(__name__)


class NVILAQwen2(nn.Module, LlavaMetaModel, LlavaMetaForCausalLM):
    """NVILA on Qwen2, from a configuration whose parts are on disk (``load_pretrained``).

    ``llm=False`` leaves the decoder out; the caller installs one as ``llm``. ``quantization`` says what
    ``quant_llm=True`` runs on: "none" until int4 weights are made, then "rtn".
    """

    def __init__(self, config: LlavaConfig, llm: bool = True) -> None:
        super().__init__()
        self.config = config
        self.is_loaded = False
        self.quantization = "none"
        self._int4: list[Any] = []  # in a list, so that it is no submodule: its tensors are made, not stored
        self._stream = StreamState()
        self.init_vlm(config)
        dtype = parse_dtype(config.model_dtype)
        self.llm = _load_llm(Path(self.llm_cfg), len(self.tokenizer), dtype) if llm else None
        self.post_config()
        self.eval()

    def decoder(self, quant_llm: bool) -> Any:
        """The causal language model on int4 weights (made by round to nearest on first use) or on the full ones."""
        if quant_llm and not self._int4:
            if self.llm is None:
                raise UsageError("the model has no decoder", hint="load it with llm=True")
            self._int4.append(quantized_decoder(self.llm))
            self.quantization = "rtn"
        if quant_llm:
            return self._int4[0]
        if self.llm is None:
            if not self._int4:
                raise UsageError("the model has no decoder", hint="load it with llm=True")
            _logger.warning("the full weights were released: quant_llm=False runs on the dequantised int4 weights")
            return self._int4[0]
        return self.llm

    def release_full_weights(self) -> None:
        """Keep the int4 weights alone; embeddings, norms and biases stay as they are."""
        self.decoder(True)
        self.llm = None

    def get_llm(self) -> Any:
        """The causal language model: the full one, or the int4 one after ``release_full_weights``."""
        return self.llm if self.llm is not None else (self._int4[0] if self._int4 else None)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Rows of the token table [.., D]."""
        rows: Tensor = self.get_llm().get_input_embeddings()(ids)
        return rows

    @property
    def device(self) -> torch.device:
        return self.vision_tower.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_tower.dtype

    def _apply(self, fn: Any, recurse: bool = True) -> NVILAQwen2:
        super()._apply(fn, recurse)
        for twin in self._int4:
            twin._apply(fn)
        return self

    def benchmark(self, prompt: Prompt, quant_llm: bool = True) -> None:
        """Print one table of vision, prefill and decode times (median and spread) for a prompt, and log it as JSON."""
        report(measure(self, prompt, quant_llm))


def _load_llm(directory: Path, tokens: int, dtype: torch.dtype) -> Any:
    config = read_config(directory, AutoConfig)
    if not isinstance(config, Qwen2Config):
        raise ExportError(f"{directory}: a decoder of type {config.model_type!r}", hint="Qwen2 decoders are supported")
    with no_init_weights(), default_dtype(dtype):
        llm = Qwen2ForCausalLM(config)
    tied = frozenset({"lm_head.weight"}) if config.tie_word_embeddings else frozenset()
    load_strict(llm, directory, named="decoder", may_lack=tied, rename=_decoder_name)
    llm.tie_weights()
    if tokens > llm.get_input_embeddings().weight.shape[0]:
        llm.resize_token_embeddings(tokens, mean_resizing=False)
    return llm.eval()


def _decoder_name(name: str) -> str | None:
    return None if name.endswith("rotary_emb.inv_freq") else name
