"""Generation settings: every field by name equals transformers' own generate, and the context is never outgrown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

from models.generation import context_limit, left_aligned
from runtime.errors import InputError, PromptError
from tests.models.tiny import picture

OPEN = {"eos_token_id": -1, "pad_token_id": 0}  # nothing ends an answer but its length


def pieces(model: Any, prompt: Any) -> tuple[Any, Any]:
    """What ``generate`` takes, and what transformers' own takes for the same prompt."""
    ids, media, config = model.prepare_prompt(prompt)
    embeds, _, mask = model._embed(ids, media, config, None, None)
    return (ids, media, config), {"inputs_embeds": embeds, "attention_mask": mask}


def both(model: Any, settings: dict[str, Any], prompt: Any = "hello") -> tuple[list[Any], list[Any]]:
    """Our ids and transformers', each from the same random state."""
    ours, theirs = pieces(model, prompt)
    found = []
    for generate in (
        lambda: model.generate(*ours, quant_llm=False, **settings),
        lambda: model.llm.generate(**theirs, **settings),
    ):
        torch.manual_seed(7)
        with torch.inference_mode():
            found.append(generate().tolist())
    return found[0], found[1]


FIELDS: dict[str, dict[str, Any]] = {
    "max_new_tokens": {"max_new_tokens": 3},
    "min_new_tokens": {"min_new_tokens": 5, "eos_token_id": 0},
    "repetition_penalty": {"repetition_penalty": 3.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "suppress_tokens": {"suppress_tokens": []},
    "begin_suppress_tokens": {"begin_suppress_tokens": []},
    "bad_words_ids": {"bad_words_ids": []},
    "forced_eos_token_id": {"forced_eos_token_id": 5},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (1, 9.0), "eos_token_id": 5},
    "sequence_bias": {"sequence_bias": [[[5], 50.0]]},
    "num_beams": {"num_beams": 4},
    "num_beams, length_penalty, early_stopping": {
        "num_beams": 3, "length_penalty": -2.0, "early_stopping": True, "eos_token_id": list(range(40)),
    },
    "num_return_sequences": {"num_return_sequences": 3, "num_beams": 3},
    "do_sample": {"do_sample": True, "top_k": 0},
    "temperature": {"do_sample": True, "temperature": 4.0, "top_k": 0},
    "top_k": {"do_sample": True, "top_k": 4},
    "top_p": {"do_sample": True, "top_p": 0.6, "top_k": 0},
    "min_p": {"do_sample": True, "min_p": 0.2, "top_k": 0},
    "typical_p": {"do_sample": True, "typical_p": 0.4, "top_k": 0},
    "num_return_sequences of samples": {"do_sample": True, "num_return_sequences": 3, "top_k": 0},
    "pad_token_id": {"do_sample": True, "num_return_sequences": 3, "eos_token_id": list(range(130)), "pad_token_id": 9},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Passing .* with `inputs_embeds`")  # transformers' own word on the prompt's ids
@pytest.mark.parametrize("name", FIELDS)
def test_behaviour_37_each_field_of_generation_config_equals_transformers_and_has_an_effect(name, loaded) -> None:
    model = loaded("nvila")
    # beams find another answer than greedy search for the one, and the other's answer repeats itself
    prompt = "what is it?" if "beams" in name else "hello"
    plain, _ = both(model, {"max_new_tokens": 8, "do_sample": False} | OPEN, prompt)
    fields = {"max_new_tokens": 8, "do_sample": False} | OPEN | FIELDS[name]
    first = plain[0][0]
    for key in ("suppress_tokens", "begin_suppress_tokens"):
        fields |= {key: [first]} if key in fields else {}
    fields |= {"bad_words_ids": [[first]]} if "bad_words_ids" in fields else {}
    if name == "min_new_tokens":
        fields["eos_token_id"] = plain[0][1]
    ours, theirs = both(model, fields, prompt)
    assert ours == theirs
    assert ours != plain
    as_config, _ = both(model, {"generation_config": GenerationConfig(**fields)}, prompt)
    assert as_config == theirs


def test_behaviour_37_a_keyword_overrides_its_field_and_the_given_config_is_left_alone(loaded) -> None:
    model = loaded("nvila")
    ours, _ = pieces(model, "hello")
    config = GenerationConfig(max_new_tokens=9, **OPEN)
    assert model.generate(*ours, quant_llm=False, generation_config=config, max_new_tokens=2).shape == (1, 2)
    assert (config.max_new_tokens, config.max_length) == (9, GenerationConfig().max_length)


def test_behaviour_37_seeds_repeat_a_sample_and_others_change_it(loaded) -> None:
    model = loaded("nvila")
    config = GenerationConfig(do_sample=True, temperature=3.0, top_k=0, max_new_tokens=12)
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(model.generate_content([picture(60, 40), "q"], config, False))
    assert texts[0] == texts[1] != texts[2]


def test_behaviour_37_stop_strings_end_an_answer_with_the_models_own_tokenizer(loaded) -> None:
    model = loaded("nvila")
    ours, _ = pieces(model, "hello")
    long = model.generate(*ours, quant_llm=False, max_new_tokens=10, **OPEN)[0].tolist()
    # a letter of the answer that stands there for the first time
    text = [model.tokenizer.decode([token]) for token in long]
    place = next(
        i for i, letter in enumerate(text) if i and letter.isascii() and letter.strip() and letter not in text[:i]
    )
    ended = model.generate(*ours, quant_llm=False, max_new_tokens=10, stop_strings=[text[place]], **OPEN)
    assert ended[0].tolist() == long[: place + 1]
    config = GenerationConfig(max_new_tokens=10, stop_strings=text[place], **OPEN)
    assert (
        model.generate_content("hello", config, False)
        == model.tokenizer.decode(long[: place + 1], skip_special_tokens=True).strip()
    )


class _Collects(BaseStreamer):
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


class _Bans(LogitsProcessor):
    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.tensor([self.token]), float("-inf"))


class _After(StoppingCriteria):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 2)


def test_behaviour_37_streamer_criteria_processors_and_dictionaries_reach_transformers(loaded) -> None:
    model = loaded("nvila")
    ours, _ = pieces(model, [picture(60, 40), "q"])
    settings = {"quant_llm": False, "max_new_tokens": 5, **OPEN}
    plain = model.generate(*ours, **settings)[0].tolist()
    streamer = _Collects()
    model.generate(*ours, streamer=streamer, **settings)
    assert (streamer.ids, streamer.ended) == (plain, True)
    texts = TextIteratorStreamer(model.tokenizer, skip_special_tokens=True)
    model.generate(*ours, streamer=texts, **settings)
    assert "".join(texts) == model.tokenizer.decode(plain, skip_special_tokens=True)
    ended = model.generate(*ours, stopping_criteria=StoppingCriteriaList([_After()]), **settings)
    assert ended[0].tolist() == plain[:2]
    banned = model.generate(*ours, logits_processor=LogitsProcessorList([_Bans(plain[0])]), **settings)
    assert plain[0] not in banned[0].tolist()
    full = model.generate(*ours, return_dict_in_generate=True, output_scores=True, **settings)
    assert (full.sequences[0].tolist(), len(full.scores)) == (plain, 5)


def test_behaviour_37_an_unknown_setting_is_named(loaded) -> None:
    with pytest.raises(ValueError, match="max_new_tokns"):
        loaded("nvila").generate(torch.tensor([[1]]), quant_llm=False, max_new_tokns=3)
    with pytest.raises(ValueError, match="beam_count"):
        loaded("llava").generate(torch.tensor([[1]]), beam_count=3)


def test_behaviour_37_none_means_the_default_generation_config(loaded) -> None:
    model = loaded("nvila")
    assert model.default_generation_config.eos_token_id == list(model.tokenizer.stop_token_ids)
    limited = model.llm.generation_config
    before, limited.max_new_tokens = limited.max_new_tokens, 4
    try:
        ids, media, config = model.prepare_prompt("hello")
        new = model.generate(ids, media, config, quant_llm=False)
        assert new.shape[1] <= 4
        text = model.tokenizer.decode(new[0], skip_special_tokens=True).strip()
        assert model.generate_content("hello", None, False) == text
        assert model.generate_content("hello", model.default_generation_config, False) == text
    finally:
        limited.max_new_tokens = before


def test_behaviour_37_ends_that_the_caller_chose_are_kept(loaded) -> None:
    model = loaded("nvila")
    ours, _ = pieces(model, "hello")
    long = model.generate(*ours, quant_llm=False, max_new_tokens=6, **OPEN)[0].tolist()
    config = GenerationConfig(max_new_tokens=6, eos_token_id=long[1])
    assert model.generate_content("hello", config, False) == model.tokenizer.decode(long[:2]).strip()


# ---- the context


@pytest.mark.parametrize("family", ["nvila", "llava"])
def test_behaviour_20_generate_refuses_an_answer_that_outgrows_the_context(family, loaded, monkeypatch) -> None:
    model = loaded(family)
    decoder = (model.llm if family == "nvila" else model).config
    monkeypatch.setattr(decoder, "max_position_embeddings", 120)
    keyword = {"quant_llm": False} if family == "nvila" else {}
    ids = torch.full((1, 100), 5)
    pixels = {} if family == "nvila" else {"images": None}
    assert model.generate(ids, max_new_tokens=20, **OPEN, **keyword, **pixels).shape[1] == (20 if keyword else 120)
    with pytest.raises(PromptError, match=r"100 positions and max_new_tokens 21 exceed the decoder's 120") as found:
        model.generate(ids, max_new_tokens=21, **keyword)
    assert found.value.hint == "max_new_tokens=20"
    with pytest.raises(PromptError, match="leaves none of 120 for an answer"):
        model.generate(torch.full((1, 120), 5), max_length=4000, **keyword)
    assert model.generate(ids, max_length=4000, **OPEN, **keyword).shape[1] == (20 if keyword else 120)
    config = GenerationConfig(max_new_tokens=400)
    with pytest.raises(PromptError, match="max_new_tokens 400"):
        model.generate_content([picture(30, 30), "q"], config)


def test_behaviour_20_positions_that_rope_scaling_adds_count() -> None:
    def limit(**rope: Any) -> int:
        return context_limit(SimpleNamespace(max_position_embeddings=100, rope_parameters=rope))

    assert limit(rope_type="default") == 100
    assert limit(rope_type="linear", factor=2.5) == 250
    assert limit(rope_type="llama3", factor=8.0, original_max_position_embeddings=12) == 100
    assert limit(rope_type="dynamic", factor=2.0) == 100
    old = SimpleNamespace(max_position_embeddings=100, rope_scaling={"type": "linear", "factor": 2})
    assert context_limit(old) == 200


# ---- batches


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_answer_as_they_do_alone_whatever_the_padding(side, loaded, monkeypatch) -> None:
    model = loaded("nvila", scales=None)
    monkeypatch.setattr(model.tokenizer, "padding_side", side)
    prompts = [["what is it?"], [picture(28, 28), "why on earth is this so?"]]
    parts = [model.prepare_prompt(prompt) for prompt in prompts]
    alone = [model.generate(*part, quant_llm=False, max_new_tokens=5, **OPEN)[0].tolist() for part in parts]
    rows = [part[0][0] for part in parts]
    longest = max(len(row) for row in rows)
    ids, mask = torch.zeros(2, longest, dtype=torch.long), torch.zeros(2, longest, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[index, place], mask[index, place] = row, 1
    together = model.generate(ids, parts[1][1], None, mask, False, max_new_tokens=5, **OPEN)
    assert together.tolist() == alone


def test_left_alignment_moves_rows_and_keeps_their_order() -> None:
    embeds = torch.arange(8.0).reshape(2, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    moved, kept = left_aligned(embeds, mask)
    assert kept.tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]
    assert moved[0, 2:, 0].tolist() == [0, 1]
    assert moved[1, 1:, 0].tolist() == [5, 6, 7]


def test_generate_without_ids_is_refused_and_streaming_takes_one_row(loaded) -> None:
    model = loaded("nvila")
    with pytest.raises(InputError, match="input_ids"):
        model.generate(quant_llm=False)
    with pytest.raises(InputError, match="one row, got 2"):
        model.stream_gen(torch.ones(2, 3, dtype=torch.long), None, None, 0, True, False)
