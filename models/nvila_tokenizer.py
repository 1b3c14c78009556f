"""NVILA's tokenizer: media tokens looked up by name, stop tokens inferred from the chat template."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from models.chat_templates import default_template, named_template
from models.conversation import MEDIA_TOKENS, SENTINEL, infer_stop_tokens
from models.tokenizer import read_tokenizer
from models.weights import read_json
from runtime.errors import ExportError


def build_tokenizer(llm_path: str | Path, chat_template: str | None = None) -> Any:
    """The tokenizer of a decoder's folder (or of its ``llm`` folder), with media tokens and stop tokens.

    Adds the sentinel, image and video tokens where they are missing, in the published order. Sets ``media_tokens``,
    ``media_token_ids`` (by name) and ``stop_token_ids``. Raises ExportError when there is no tokenizer.
    """
    for directory in (Path(llm_path), Path(llm_path) / "llm"):
        if (directory / "tokenizer_config.json").is_file() or (directory / "tokenizer.json").is_file():
            break
    else:
        raise ExportError(f"Cannot find tokenizer in {llm_path}.", hint="copy tokenizer.json and tokenizer_config.json")
    tokenizer = read_tokenizer(directory)
    if chat_template is not None:
        tokenizer.chat_template = named_template(chat_template)
    elif not tokenizer.chat_template:
        tokenizer.chat_template = default_template(_decoder_type(directory), tokenizer.get_added_vocab())
    _add_tokens(tokenizer)
    tokenizer.media_tokens = dict(MEDIA_TOKENS)
    tokenizer.media_token_ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in MEDIA_TOKENS.items()}
    tokenizer.stop_token_ids = infer_stop_tokens(tokenizer)
    return tokenizer


def _decoder_type(directory: Path) -> str:
    """The decoder that lies beside a tokenizer: "qwen2" where nothing does."""
    path = directory / "config.json"
    return str(read_json(path).get("model_type", "qwen2")) if path.is_file() else "qwen2"


def rope_scaling_for(model_max_length: int, max_position_embeddings: int) -> dict[str, Any] | None:
    """Linear RoPE scaling that a longer context needs, None when it fits."""
    if model_max_length <= max_position_embeddings:
        return None
    return {"rope_type": "linear", "factor": float(math.ceil(model_max_length / max_position_embeddings))}


def _add_tokens(tokenizer: Any) -> None:
    known = tokenizer.get_vocab()
    for token in (SENTINEL, *MEDIA_TOKENS.values()):
        if token not in known:
            tokenizer.add_tokens([token], special_tokens=True)
