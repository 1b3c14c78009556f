"""What every decoder offers: numbered slots, each with its own KV cache, fed with embeddings or token ids."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from runtime.bundle.manifest import VisionSection
from runtime.fusion import PlacedIds
from runtime.memory import MemoryUse
from runtime.sampling import Draws
from runtime.tiling import TileLayout
from runtime.types import ImageArray

F32 = npt.NDArray[np.float32]


class Decoder(Protocol):
    """An autoregressive decoder over numbered slots. Not thread-safe: one owner thread uses it.

    A failed call leaves every slot as it was before it, as long as the decoder is open.
    """

    @property
    def hidden(self) -> int:
        """Width of an embedding."""

    @property
    def vocab(self) -> int:
        """Length of a row of logits."""

    @property
    def max_seq_len(self) -> int:
        """Positions of a slot's KV cache."""

    @property
    def kind(self) -> Literal["onnx", "cuda"]:
        """Which of the bundle's decoders it is."""

    def open(self, slots: int) -> None:
        """Gives the decoder this many slots, all empty; what older slots held is gone. InputError below one."""

    def prefill(self, slot: int, inputs_embeds: F32, *, num_logits: int = 1) -> F32:
        """Appends embeddings f32 [S, hidden] at ``length(slot)``; logits f32 [num_logits, vocab] of the last positions.

        The result is a new array. PromptError before anything runs when S is 0, num_logits is not 1..S, or the slot
        would exceed max_seq_len.
        """

    def decode(self, slot: int, token_ids: Sequence[int]) -> F32:
        """Appends n ≥ 1 tokens and gives logits f32 [n, vocab], one row after each of them.

        The result is valid until the next call for this slot. PromptError as for prefill, and for unknown ids.
        """

    def embed(self, token_ids: Sequence[int] | npt.NDArray[np.int64]) -> F32:
        """Rows of the token table, a new f32 [n, hidden]; PromptError for an id outside the table."""

    def length(self, slot: int) -> int:
        """Positions of the slot that are filled."""

    def truncate(self, slot: int, length: int) -> None:
        """Forgets all positions from ``length`` on; InputError outside 0..length(slot)."""

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Makes ``target`` hold the first ``length`` positions of ``source``; InputError outside 0..length(source)."""

    def memory(self) -> tuple[MemoryUse, ...]:
        """What it keeps in memory, by purpose."""

    def close(self) -> None:
        """Gives memory and threads back; harmless when repeated. Any other call after it is a ClosedError."""


@runtime_checkable
class SamplingDecoder(Protocol):
    """A decoder that can also choose tokens where it computes them, without the logits coming to the host."""

    def sampled(self, slot: int, token_id: int, draws: Draws) -> Generator[tuple[int, float], None, None]:
        """Appends ``token_id``, chooses the next token (id, log-probability), appends that, and so on without end.

        The tokens are those that `runtime.sampling.Sampler` chooses from the same logits with the same draws. While a
        token is given out the next step runs already. ``length(slot)`` counts ``token_id`` and what was given out but
        the last one, during the iteration and once it is closed: at most one step was in vain then. Any other call for
        the decoder ends it. Raises PromptError when the slot is full, EngineError for logits that are not finite, and
        for unknown ids as decode does.
        """


class TileMaker(Protocol):
    """Makes the tiles of one model's pictures on a decoder's device, as `runtime.preprocess` does on the CPU."""

    def host_tiles(self, rgb: ImageArray, layout: TileLayout) -> F32:
        """rgb u8 [H, W, 3] → tiles f32 [T, 3, S, S], the same bits as `runtime.preprocess.preprocess` gives."""


@runtime_checkable
class PreprocessingDecoder(Protocol):
    """A decoder whose device can also make tiles."""

    def tile_maker(self, vision: VisionSection) -> TileMaker:
        """For the pictures of one model; closed with the decoder."""


@runtime_checkable
class FusingDecoder(Protocol):
    """A decoder that can also look up and put together a prompt's embeddings itself."""

    def prefill_ids(self, slot: int, placed: PlacedIds, *, num_logits: int = 1) -> F32:
        """As `Decoder.prefill` for a prompt of token ids and image rows."""
