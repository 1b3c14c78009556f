"""Checkpoints of real shapes with random weights, written by transformers itself; for ``full_shape.py``.

    python scripts/bench/full_shape_checkpoint.py nvila-2b /tmp/full_shape/nvila-2b

Weights are drawn in bf16, scaled by their inputs, so that what a model computes stays finite and in the usual range.
The tokenizer is a byte-level BPE whose vocabulary was filled up with pairs and triples of bytes to the real size.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.bench.full_shape_sizes import SHAPES, FullShape  # noqa: E402

DEMO = ROOT / "models" / "demo"
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<vila/sentinel>", "<image>", "<vila/video>")
VICUNA = ("<pad>", "<s>", "</s>", "<image>")


def write_checkpoint(shape: FullShape, directory: Path, seed: int = 0) -> None:
    """Writes the checkpoint: three folders for NVILA, one for LLaVA."""
    import torch

    torch.manual_seed(seed)
    (_write_nvila if shape.family == "nvila" else _write_llava)(shape, directory)


def _write_nvila(shape: FullShape, directory: Path) -> None:
    from safetensors.torch import save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    from models.projector import MultimodalProjector

    tower, llm, side = directory / "vision_tower", directory / "llm", shape.tower["image_size"]
    _made(lambda: SiglipVisionModel(SiglipVisionConfig(vision_use_head=False, **shape.tower))).save_pretrained(tower)
    size = {"height": side, "width": side}
    SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tower)
    width = shape.tower["hidden_size"] * len(shape.scales)
    sizes = SimpleNamespace(mm_hidden_size=width, hidden_size=shape.decoder["hidden_size"])
    projector = _made(lambda: MultimodalProjector(shape.projector, sizes))
    (directory / "mm_projector").mkdir()
    save_file(projector.state_dict(), directory / "mm_projector" / "model.safetensors", metadata={"format": "pt"})
    _write_json(directory / "mm_projector" / "config.json", projector.config)
    ids = _write_tokenizer(llm, shape.decoder["vocab_size"], CHATML, DEMO / "demo-nvila" / "llm")
    config = Qwen2Config(
        **_decoder(shape), eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"], bos_token_id=None
    )
    _made(lambda: Qwen2ForCausalLM(config)).save_pretrained(llm, max_shard_size="1GB")
    demo = json.loads((DEMO / "demo-nvila" / "config.json").read_text(encoding="utf-8"))
    ours = {
        "llm_cfg": {},
        "vision_tower_cfg": {},
        "mm_projector_cfg": {},
        "hidden_size": shape.decoder["hidden_size"],
        "mm_hidden_size": width,
        "model_dtype": "torch.bfloat16",
        "s2_scales": ",".join(map(str, shape.scales)),
        "s2_max_split_size": side,
        "min_tiles": 1,
        "max_tiles": 12,
    }
    _write_json(directory / "config.json", demo | ours)


def _write_llava(shape: FullShape, directory: Path) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    ids = _write_tokenizer(directory, shape.decoder["vocab_size"], VICUNA, DEMO / "demo-llava")
    special = {"bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"], "pad_token_id": ids["<pad>"]}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape.tower),
        text_config=LlamaConfig(**_decoder(shape), **special),
        image_token_id=ids["<image>"],
        image_seq_length=(shape.tower["image_size"] // shape.tower["patch_size"]) ** 2,
    )
    _made(lambda: LlavaForConditionalGeneration(config)).save_pretrained(directory, max_shard_size="1GB")
    side = shape.tower["image_size"]
    size = {"height": side, "width": side}
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=size, do_center_crop=True).save_pretrained(directory)


def _decoder(shape: FullShape) -> dict[str, Any]:
    fields = {name: value for name, value in shape.decoder.items() if name != "rope_theta"}
    rope = {"rope_theta": shape.decoder["rope_theta"], "rope_type": "default"}
    return fields | {"num_hidden_layers": shape.layers, "rope_parameters": rope, "rms_norm_eps": 1e-6}


def _made(make: Any) -> Any:
    """A module in bf16 with random weights; no copy of it in f32 ever exists."""
    import torch
    from transformers.initialization import no_init_weights

    from models.weights import default_dtype

    with no_init_weights(), default_dtype(torch.bfloat16):
        module = make()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, 0.02 if "embed_tokens" in name else 1 / math.sqrt(fan_in))
            elif "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.8, 1.2)
            else:
                parameter.normal_(0.0, 0.02)
    return module.to(torch.bfloat16).eval()


def byte_tokens() -> Iterator[tuple[str, tuple[str, str] | None]]:
    """(token, the two tokens that it is merged from): the letters of bytes, pairs of them, then triples."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    yield from ((letter, None) for letter in letters)
    yield from ((first + second, (first, second)) for first, second in itertools.product(letters, repeat=2))
    for first, second, third in itertools.product(letters, repeat=3):
        yield first + second + third, (first + second, third)


def _write_tokenizer(directory: Path, vocab: int, specials: tuple[str, ...], demo: Path) -> dict[str, int]:
    """Writes a tokenizer of exactly ``vocab`` tokens with the demo's template; returns the ids of the special ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = list(itertools.islice(byte_tokens(), vocab - len(specials)))
    merges = [pair for _, pair in tokens if pair]
    inner = Tokenizer(models.BPE({token: index for index, (token, _) in enumerate(tokens)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in specials])
    ids = {token: inner.token_to_id(token) for token in specials}
    vicuna = "<s>" in specials
    if vicuna:
        inner.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", ids["<s>"])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>" if vicuna else None,
        eos_token="</s>" if vicuna else "<|im_end|>",
        pad_token="<pad>" if vicuna else "<|endoftext|>",
        model_max_length=4096 if vicuna else 8192,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (demo / "chat_template.jinja").read_text(encoding="utf-8")
    tokenizer.save_pretrained(directory)
    return ids


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=False)
    write_checkpoint(SHAPES[args.shape], args.directory, args.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
