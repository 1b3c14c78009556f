"""Several rounds of one conversation through ``stream_gen``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from models.conversation import Turn, tokenize_continuation, tokenize_turns
from models.prompts import Prompt, as_conversation, take_apart

Choose = Callable[[Tensor], int]
Media = dict[str, list[Any]]
Settings = dict[str, Media]


def greedy(logits: Tensor) -> int:
    """The likeliest id of logits [V]; the first of several."""
    return int(logits.argmax())


class Rounds:
    """A conversation with an NVILA model, round by round.

    With ``chunk_prefilling`` a round feeds what is new alone, on top of the cache: the end of the answer before it
    (which was sampled but never fed), what the chat template writes after an answer, and the new prompt with its
    media. Without it every round feeds the whole conversation and all its media. Both give the same ids; ``ids`` are
    those of the conversation so far. The model streams one conversation at a time.
    """

    def __init__(self, model: Any, *, chunk_prefilling: bool = True, quant_llm: bool = True) -> None:
        self.model, self.chunk_prefilling, self.quant_llm = model, chunk_prefilling, quant_llm
        self.ids: list[int] = []
        self._fed = 0  # ids that lie in the cache, all but the last one sampled
        self._position = 0  # positions that they take there
        self._turns: list[Turn] = []
        self._media: Media = {}
        self._config: Settings = {}

    def ask(self, prompt: Prompt, max_new_tokens: int = 512, choose: Choose = greedy) -> str:
        """The answer to a prompt (see ``generate_content``) as text."""
        return self._text(list(self.stream(prompt, max_new_tokens, choose)))

    def stream(self, prompt: Prompt, max_new_tokens: int = 512, choose: Choose = greedy) -> Iterator[int]:
        """The ids of the answer one by one, the stop token included; who takes fewer of them ends the answer there.

        Raises PromptError when the conversation outgrows the decoder's positions; a prompt that does not fit leaves
        the conversation as it was.
        """
        logits = self._begin(prompt)
        answer: list[int] = []
        try:
            while len(answer) < max_new_tokens:
                answer.append(choose(logits[0, -1]))
                self.ids.append(answer[-1])
                yield answer[-1]
                if answer[-1] in self.model.tokenizer.stop_token_ids or len(answer) == max_new_tokens:
                    break
                logits = self._step(answer[-1:], self._position, None, None)
                self._fed += 1
        finally:
            self._turns.append(Turn("assistant", (self._text(answer),)))

    def _begin(self, prompt: Prompt) -> Tensor:
        """Logits after a prompt."""
        conversation = as_conversation(prompt)
        media, config = self.model.prepare_media(conversation)
        turns, _ = take_apart(conversation, self.model.tiling_spec().video_frames)
        turns = [*self._turns, *turns]
        ids = self._followed_by(turns)
        all_media, all_config = _joined(self._media, media), _joined_settings(self._config, config)
        if self.chunk_prefilling:
            logits = self._step(ids[self._fed :], self._position, media, config)
        else:
            logits = self._step(ids, 0, all_media, all_config)
        self.ids, self._turns, self._media, self._config = ids, turns, all_media, all_config
        self._fed = len(ids)
        return logits

    def _followed_by(self, turns: list[Turn]) -> list[int]:
        """The conversation's ids up to the prompt that ``turns`` end with."""
        tokenizer = self.model.tokenizer
        if not self.ids:
            return tokenize_turns(turns, tokenizer)
        more, last = tokenize_continuation(turns, tokenizer), self.ids[-1]
        if more[:1] == [last]:
            return self.ids + more[1:]  # the answer's end was sampled
        # another stop token than the template's is taken back; an answer that was cut has none
        return (self.ids[:-1] if last in tokenizer.stop_token_ids else self.ids) + more

    def _step(self, ids: list[int], start: int, media: Any, config: Any) -> Tensor:
        logits, length = self.model.stream_gen(torch.tensor([ids]), media, config, start, start > 0, self.quant_llm)
        self._position = start + length
        return logits

    def _text(self, answer: list[int]) -> str:
        text: str = self.model.tokenizer.decode(answer, skip_special_tokens=True)
        return text.strip()


def _joined(first: Media, second: Media) -> Media:
    return {name: [*first.get(name, []), *second.get(name, [])] for name in {**first, **second}}


def _joined_settings(first: Settings, second: Settings) -> Settings:
    """Settings are lists with an entry per picture, as the media are."""
    return {name: _joined(first.get(name, {}), second.get(name, {})) for name in {**first, **second}}
