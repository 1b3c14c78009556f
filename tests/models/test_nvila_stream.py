"""Streaming: RoPE scaling, chunks and single steps against transformers' one pass; tiles expanded by any tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from models.conversation import MediaPart, Turn, tokenize_turns
from models.nvila import NVILAQwen2
from models.nvila_stream import expand_tiles
from runtime.errors import PromptError
from tests.models import tiny
from tests.models.tiny import CHATML, CHATML_SPECIALS, byte_tokenizer, picture

# ---- RoPE scaling

TRAINED = 48
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
}  # fmt: skip
CONTEXT = {"linear": 3 * TRAINED, "llama3": TRAINED, "dynamic": TRAINED}


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``scaled("linear")``: a model whose decoder was made for TRAINED positions, and its llm folder."""
    made: dict[str, Any] = {}

    def make(kind: str) -> Any:
        if kind not in made:
            directory = tiny.write_nvila(tmp_path_factory.mktemp(kind) / "n", scales=None)
            path = directory / "llm" / "config.json"
            fields = json.loads(path.read_text()) | {"max_position_embeddings": TRAINED}
            fields["rope_parameters"] = SCALINGS[kind] | {"rope_theta": 100.0}
            path.write_text(json.dumps(fields))
            made[kind] = NVILAQwen2.load_pretrained(directory), directory / "llm"
        return made[kind]

    return make


def streamed(model: Any, ids: list[int], lengths: list[int], quant: bool) -> list[torch.Tensor]:
    """Logits after each of the chunks that ``ids`` are cut into."""
    found, position = [], 0
    for length in lengths:
        chunk = torch.tensor([ids[position : position + length]])
        logits, fed = model.stream_gen(chunk, None, None, position, position > 0, quant)
        position += fed
        found.append(logits[0, 0])
    assert position == len(ids)
    return found


@pytest.mark.parametrize("quant", [False, True], ids=["full", "int4"])
@pytest.mark.parametrize("kind", SCALINGS)
def test_behaviour_21_prefill_chunks_and_decode_agree_under_rope_scaling(kind: str, quant: bool, scaled: Any) -> None:
    model, folder = scaled(kind)
    length = CONTEXT[kind]  # every position that there is
    ids = torch.randint(0, 200, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    judge = model.decoder(True) if quant else Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        whole = judge(torch.tensor([ids])).logits[0]
    one_pass = streamed(model, ids, [length], quant)
    torch.testing.assert_close(one_pass[0], whole[-1], atol=1e-4, rtol=1e-4)
    chunks = streamed(model, ids, [length - 30, 7, 13, 10], quant)
    torch.testing.assert_close(torch.stack(chunks), whole[[-31, -24, -11, -1]], atol=1e-4, rtol=1e-4)
    steps = streamed(model, ids, [5] + [1] * (length - 5), quant)
    torch.testing.assert_close(torch.stack(steps), whole[4:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", SCALINGS)
def test_behaviour_21_positions_beyond_the_scaled_context_are_refused(kind: str, scaled: Any) -> None:
    model, _ = scaled(kind)
    full = torch.zeros(1, CONTEXT[kind], dtype=torch.long)
    _, fed = model.stream_gen(full, None, None, 0, True, False)
    with pytest.raises(PromptError, match=f"{fed} positions in the cache and 1 new ones exceed the decoder's {fed}"):
        model.stream_gen(full[:, :1], None, None, fed, True, False)
    with pytest.raises(PromptError, match=f"max_new_tokens 2 exceed the decoder's {fed}"):
        model.generate(full[:, 1:], quant_llm=False, max_new_tokens=2)


def plain_decoder(folder: Path, **fields: Any) -> Any:
    config = Qwen2Config.from_pretrained(folder)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 100.0}
    config.max_position_embeddings = 4096
    return Qwen2ForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)


def test_behaviour_21_linear_scaling_divides_positions_by_the_factor(scaled: Any) -> None:
    model, folder = scaled("linear")
    plain = plain_decoder(folder)
    ids = torch.arange(60)[None] % 50
    with torch.no_grad():
        divided = plain(ids, position_ids=torch.arange(60)[None] / 3.0).logits[0, -1]
        undivided = plain(ids).logits[0, -1]
    for lengths in ([60], [59, 1], [20, 40]):
        found = streamed(model, ids[0].tolist(), lengths, False)[-1]
        torch.testing.assert_close(found, divided, atol=1e-4, rtol=1e-4)
    assert (found - undivided).abs().max() > 1e-2


def test_behaviour_21_llama3_scaling_changes_slow_frequencies_and_dynamic_none_inside_its_context(scaled: Any) -> None:
    ids = torch.arange(40)[None] % 30
    model, folder = scaled("llama3")
    with torch.no_grad():
        plain = plain_decoder(folder)(ids).logits[0, -1]
    assert (streamed(model, ids[0].tolist(), [30, 10], False)[-1] - plain).abs().max() > 1e-2
    model, folder = scaled("dynamic")
    with torch.no_grad():
        plain = plain_decoder(folder)(ids).logits[0, -1]
    torch.testing.assert_close(streamed(model, ids[0].tolist(), [30, 10], False)[-1], plain, atol=1e-4, rtol=1e-4)


# ---- the expansion of tiles


def joining_tokenizer() -> Any:
    """Bytes with merges across a line break: two of them are one token, and so are one and the letter w."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("Ċ", "w"), ("w", "h"), ("Ċ", "wh")]
    vocabulary = {letter: index for index, letter in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    inner = Tokenizer(models.BPE(vocabulary, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in ("<x>", *CHATML_SPECIALS[:3])])
    return _chatml(inner, bos=None)


def sentence_tokenizer() -> Any:
    """As Llama's: a space in front of a text, bytes for what has no letter, <s> in front."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {
        token: index
        for index, token in enumerate(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters])
    }
    inner = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()]
    )
    inner.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "<image>", *CHATML_SPECIALS[:3])])
    start = [("<s>", inner.token_to_id("<s>"))]
    inner.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", start)
    return _chatml(inner, bos="<s>")


def _chatml(inner: Tokenizer, bos: str | None) -> Any:
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": bos}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=2048, **ends)
    tokenizer.chat_template = CHATML
    return tokenizer


TOKENIZERS = {
    "bytes": lambda: byte_tokenizer(CHATML, CHATML_SPECIALS),
    "joining": joining_tokenizer,
    "sentencepiece": sentence_tokenizer,
}


@pytest.fixture(scope="module")
def tiling(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``tiling("bytes")``: a model that cuts pictures into tiles, with that tokenizer."""
    made: dict[str, Any] = {}

    def make(name: str) -> Any:
        if name not in made:
            directory = tiny.write_nvila(tmp_path_factory.mktemp(name) / "n", scales=None)
            for path in (directory / "llm").glob("*token*"):
                path.unlink()
            TOKENIZERS[name]().save_pretrained(directory / "llm")
            made[name] = NVILAQwen2.load_pretrained(directory)
            made[name].llm.resize_token_embeddings(len(made[name].tokenizer), mean_resizing=False)
        return made[name]

    return make


TEXTS = ["why?", " why so?", "\nwhy?", "\n\nwell\nwhy", "", "é\U0001f642 <b>"]


@pytest.mark.parametrize("size", [(90, 40), (28, 28)], ids=["tiles", "one tile"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_behaviour_39_one_image_token_becomes_the_ids_of_generate_content(name: str, size: Any, tiling: Any) -> None:
    model = tiling(name)
    tokenizer = model.tokenizer
    for text in TEXTS:
        ids, media, _ = model.prepare_prompt([picture(*size), text] if text else [picture(*size)])
        tiles = len(media["image"])
        assert tiles > 2 or size == (28, 28)
        assert int((ids == tokenizer.media_token_ids["image"]).sum()) == tiles
        written = (MediaPart("<image>"), text) if text else (MediaPart("<image>"),)
        single = torch.tensor([tokenize_turns([Turn("user", written)], tokenizer)])
        assert int((single == tokenizer.media_token_ids["image"]).sum()) == 1
        if not (tiles == 1 and text.startswith("\n")):  # there the break may be the prompt's own
            assert expand_tiles(single, tiles, tokenizer).tolist() == ids.tolist()
        assert expand_tiles(ids, tiles, tokenizer).tolist() == ids.tolist()
    streamed_logits, fed = model.stream_gen(single, media, None, 0, True, False)
    embeds, _, _ = model._embed(ids, media, None, None, None)
    assert fed == embeds.shape[1]
    assert torch.equal(streamed_logits, model.llm(inputs_embeds=embeds, logits_to_keep=1).logits)


def test_behaviour_39_the_three_tokenizers_differ_where_it_matters(tiling: Any) -> None:
    tokenizers = [tiling(name).tokenizer for name in TOKENIZERS]
    assert len({tokenizer.media_token_ids["image"] for tokenizer in tokenizers}) == 3
    joining = tokenizers[1]
    assert len(joining("\n\n")["input_ids"]) == len(joining("\nw")["input_ids"]) == 1
    assert tokenizers[2]("\n")["input_ids"][0] == tokenizers[2].bos_token_id


def test_behaviour_39_a_stack_of_tiles_counts_as_its_tiles(tiling: Any) -> None:
    model = tiling("bytes")
    ids, media, _ = model.prepare_prompt([picture(90, 40), "why?"])
    single = torch.tensor([tokenize_turns([Turn("user", (MediaPart("<image>"), "why?"))], model.tokenizer)])
    stack = {"image": [torch.stack(media["image"])]}
    by_stack, fed = model.stream_gen(single, stack, None, 0, True, False)
    by_tiles, again = model.stream_gen(ids, media, None, 0, True, False)
    assert fed == again
    assert torch.equal(by_stack, by_tiles)


def test_behaviour_39_several_image_tokens_stay_as_they_are(tiling: Any) -> None:
    model = tiling("bytes")
    image = model.tokenizer.media_token_ids["image"]
    for ids in ([[1, image, 2, image]], [[1, 2]]):
        assert expand_tiles(torch.tensor(ids), 3, model.tokenizer).tolist() == ids
