"""Reads a checkpoint's tokenizer: the pipeline that tokenizer.json describes, as the runtime reads it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from models.weights import read_json
from runtime.errors import ExportError


def read_tokenizer(directory: Path) -> Any:
    """The tokenizer of a directory, its chat template included where it lies in a file of its own.

    With a tokenizer.json exactly that pipeline: transformers' model-specific classes may put their own
    pre-tokenizer in its place. Raises ExportError naming the directory.
    """
    # A class decided by the file, so that no code of the checkpoint is asked for.
    reader = PreTrainedTokenizerFast if (directory / "tokenizer.json").is_file() else AutoTokenizer
    try:
        tokenizer: Any = reader.from_pretrained(
            directory, padding_side="right", trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ExportError(f"{directory}: the tokenizer cannot be read: {error}", hint="copy tokenizer.json") from error
    template = directory / "chat_template.json"
    if not tokenizer.chat_template and template.is_file():
        tokenizer.chat_template = read_json(template).get("chat_template")
    return tokenizer
