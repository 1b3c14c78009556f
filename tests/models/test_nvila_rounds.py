"""Several rounds: with and without chunks, one pass, and generate give the same ids; nothing is lost between rounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from models.conversation import Turn, tokenize_turns
from models.nvila import NVILAQwen2
from models.nvila_rounds import Rounds
from runtime.errors import PromptError
from tests.models import tiny
from tests.models.tiny import picture

DYNAMIC: dict[str, Any] = {"scales": None}
PROMPTS: list[Any] = [
    [picture(90, 40), "what is it?"],
    "and  why?",
    [picture(28, 28, 1), " and {this}?"],
    "thanks",
]


@pytest.mark.parametrize("quant", [False, True], ids=["full", "int4"])
@pytest.mark.parametrize("options", [{}, DYNAMIC], ids=["dynamic_s2", "dynamic"])
def test_behaviour_23_rounds_with_and_without_chunks_equal_generate_on_the_whole_conversation(
    options: dict[str, Any], quant: bool, loaded: Any
) -> None:
    model = loaded("nvila", **options)
    chunked = Rounds(model, chunk_prefilling=True, quant_llm=quant)
    answers = [list(chunked.stream(prompt, max_new_tokens=6)) for prompt in PROMPTS]
    whole = Rounds(model, chunk_prefilling=False, quant_llm=quant)
    assert [list(whole.stream(prompt, max_new_tokens=6)) for prompt in PROMPTS] == answers
    assert whole.ids == chunked.ids
    # the last round once more, by transformers' generate on the ids and media of all rounds
    before = torch.tensor([chunked.ids[: -len(answers[-1])]])
    settings = GenerationConfig(max_new_tokens=6, eos_token_id=list(model.tokenizer.stop_token_ids), pad_token_id=0)
    new = model.generate(before, chunked._media, chunked._config, quant_llm=quant, generation_config=settings)
    assert new[0].tolist() == answers[-1]
    assert len(set(map(tuple, answers))) > 1


@pytest.mark.parametrize("chunks", [True, False])
def test_behaviour_20_the_end_of_the_answer_is_in_the_cache_before_the_next_round(
    chunks: bool, loaded: Any, monkeypatch: Any
) -> None:
    model = loaded("nvila")
    rounds = Rounds(model, chunk_prefilling=chunks, quant_llm=False)
    said = iter(model.tokenizer("yes<|im_end|>no<|im_end|>", add_special_tokens=False)["input_ids"])
    fed: list[list[int]] = []
    stream_gen = model.stream_gen

    def watched(ids: Any, media: Any, config: Any, start: int, *rest: Any) -> Any:
        del fed[start if start == 0 else len(fed) :]
        fed.append(ids[0].tolist())
        return stream_gen(ids, media, config, start, *rest)

    monkeypatch.setattr(model, "stream_gen", watched)
    for prompt in ("one?", "two?"):
        rounds.ask(prompt, 9, lambda _: next(said))
    turns = [Turn("user", ("one?",)), Turn("assistant", ("yes",)), Turn("user", ("two?",)), Turn("assistant", ("no",))]
    template = tokenize_turns(turns, model.tokenizer, add_generation_prompt=False)
    newline = model.tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert rounds.ids + newline == template  # "<|im_end|>\n" of the first answer stands between the rounds
    cached = [token for ids in fed for token in ids]
    assert cached == rounds.ids[:-1]
    assert model._stream._cache.get_seq_length() == len(cached)


@pytest.mark.parametrize("ending", ["cut", "other stop token"])
def test_behaviour_20_an_answer_that_did_not_end_as_the_template_writes_it_is_ended(ending: str, loaded: Any) -> None:
    model = loaded("nvila", template=tiny.CHATML.replace("'<|im_end|>\\n'", "'<|endoftext|>\\n'"))
    assert len(model.tokenizer.stop_token_ids) == 2
    rounds = Rounds(model, quant_llm=False)
    written = "abc" if ending == "cut" else "abc<|im_end|>"
    said = iter(model.tokenizer(written + "d", add_special_tokens=False)["input_ids"])
    list(rounds.stream("one?", 3 if ending == "cut" else 9, lambda _: next(said)))
    list(rounds.stream("two?", 1, lambda _: next(said)))
    turns = [Turn("user", ("one?",)), Turn("assistant", ("abc",)), Turn("user", ("two?",))]
    assert rounds.ids[:-1] == tokenize_turns(turns, model.tokenizer)


def test_behaviour_20_an_answer_that_nobody_takes_to_its_end_ends_there(loaded: Any) -> None:
    model = loaded("nvila")
    rounds = Rounds(model, quant_llm=False)
    stream = rounds.stream("one?", 9)
    taken = [next(stream), next(stream)]
    stream.close()
    first = len(rounds.ids)
    assert rounds.ids[-2:] == taken
    rounds.ask("two?", 2)
    assert rounds.ids[first] == model.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_behaviour_20_a_round_that_does_not_fit_is_refused_and_leaves_the_conversation(tmp_path: Any) -> None:
    model = NVILAQwen2.load_pretrained(tiny.write_nvila(tmp_path / "n", model_max_length=2048))
    model.llm.config.max_position_embeddings = 150
    rounds = Rounds(model, quant_llm=False)
    rounds.ask("one?", 3)
    ids = list(rounds.ids)
    with pytest.raises(PromptError, match=r"exceed the decoder's 150"):
        rounds.ask("x" * 100, 3)
    assert rounds.ids == ids
    rounds.ask("two?", 3)
    assert len(rounds.ids) < 150


def test_sampling_is_the_callers(loaded: Any) -> None:
    model = loaded("nvila")
    seen: list[torch.Size] = []

    def choose(logits: torch.Tensor) -> int:
        seen.append(logits.shape)
        return int(logits.topk(2).indices[1])

    list(Rounds(model, quant_llm=False).stream("one?", 2, choose))
    assert seen == [(model.llm.config.vocab_size,)] * 2
