"""A model without weights for tests of what surrounds it: a real bundle and tokenizer, engines that are a few lines.

`FakeDecoder` answers from a hash of everything that its slot holds, so that two runs give the same text exactly when
the decoder was fed the same rows in the same order. ``script`` replaces the hash where a test wants certain words.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from runtime import startup
from runtime.bundle import Bundle, Manifest, load_bundle, parse_manifest, write_bundle
from runtime.errors import ClosedError, PromptError
from runtime.memory import MemoryUse
from runtime.session import Session
from runtime.tiling import TileLayout
from tests.runtime.bundle_example import FILES, manifest_json

HIDDEN = 4
SPECIALS = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 3}
STOP_ID = 2
CONTEXT = 160
Script = Callable[[np.ndarray], int]


def byte_tokenizer() -> Tokenizer:
    """Ids 0 to 3 are special, then one token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = SPECIALS | {char: len(SPECIALS) + index for index, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return tokenizer


TOKENIZER = byte_tokenizer()
VOCAB = TOKENIZER.get_vocab_size()


def ids_of(text: str) -> list[int]:
    """Token ids of plain text."""
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


def fake_bundle(path: Path, *, context: int = CONTEXT, video_frames: int = 4, tile_all: bool = False) -> Bundle:
    """A bundle on disk whose graphs nobody opens."""

    def fill(folder: Path) -> Manifest:
        for name, data in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(TOKENIZER.to_str().encode() if name == "tokenizer.json" else data)
        fields = manifest_json()
        fields["prompt"]["special_tokens"] = SPECIALS
        fields["prompt"]["context_tokens"] = context
        fields["prompt"]["roles"]["assistant"]["open"] = fields["prompt"]["generation_prompt"] = "ASSISTANT:"
        fields["decoder"] |= {"vocab": VOCAB, "hidden": HIDDEN, "max_seq_len": context}
        fields["decoder"]["token_embeds"]["shape"] = [VOCAB, HIDDEN]
        fields["vision"]["tiling"] |= {"video_frames": video_frames, "tile_all": tile_all}
        return parse_manifest(fields)

    write_bundle(path, fill)
    return load_bundle(path)


class FakeDecoder:
    """Implements `runtime.decoder.Decoder` on lists of rows. Counts what it is asked to do."""

    kind, hidden, vocab = "onnx", HIDDEN, VOCAB

    def __init__(self, max_seq_len: int = CONTEXT, script: Script | None = None) -> None:
        self.max_seq_len = max_seq_len
        self.script = script or end_now_and_then
        self.rows: list[list[np.ndarray]] = []
        self.prefilled: list[int] = []
        self.decoded = 0
        self.threads: set[int] = set()
        self.closed = 0
        self.gate: threading.Semaphore | None = None  # a test lets each decode step pass
        self.fail_next: Exception | None = None

    def open(self, slots: int) -> None:
        self.rows = [[] for _ in range(slots)]

    def embed(self, token_ids: Sequence[int]) -> np.ndarray:
        ids = np.asarray(token_ids, np.float32)
        return np.stack([ids, ids * 0.5, ids * 0, ids * 0 + 1], axis=1)

    def prefill(self, slot: int, inputs_embeds: np.ndarray, *, num_logits: int = 1) -> np.ndarray:
        self._enter()
        self._append(slot, list(inputs_embeds))
        self.prefilled.append(len(inputs_embeds))
        return self._logits(slot)[None]

    def decode(self, slot: int, token_ids: Sequence[int]) -> np.ndarray:
        self._enter()
        if self.gate is not None:
            self.gate.acquire()
        out = []
        for row in self.embed(token_ids):
            self._append(slot, [row])
            out.append(self._logits(slot))
        self.decoded += 1
        return np.stack(out)

    def length(self, slot: int) -> int:
        return len(self.rows[slot])

    def truncate(self, slot: int, length: int) -> None:
        assert 0 <= length <= len(self.rows[slot])
        del self.rows[slot][length:]

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        self.rows[target] = list(self.rows[source][:length])

    def memory(self) -> tuple[MemoryUse, ...]:
        return (MemoryUse("weights", 1000, "host"),)

    def close(self) -> None:
        self.closed += 1

    def _append(self, slot: int, rows: list[np.ndarray]) -> None:
        if len(self.rows[slot]) + len(rows) > self.max_seq_len:
            raise PromptError("the slot is full")
        self.rows[slot] += rows

    def _enter(self) -> None:
        self.threads.add(threading.get_ident())
        if self.closed:
            raise ClosedError("the decoder is closed")
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error

    def _logits(self, slot: int) -> np.ndarray:
        logits = np.zeros(VOCAB, np.float32)
        logits[self.script(np.stack(self.rows[slot]))] = 10.0
        return logits


class FakeVision:
    """Embeddings that name the picture: its mean colour, and the row's number."""

    def __init__(self) -> None:
        self.calls = 0
        self.closed = 0
        self.threads: set[int] = set()
        self.fail_next: Exception | None = None

    def encode(self, tiles: np.ndarray, layout: TileLayout) -> np.ndarray:
        self.calls += 1
        self.threads.add(threading.get_ident())
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        rows = np.arange(layout.num_image_tokens, dtype=np.float32)
        return np.stack([rows, rows * 0 + tiles.mean(), rows * 0 - 1, rows * 0 - 1], axis=1)

    def close(self) -> None:
        self.closed += 1


def end_now_and_then(rows: np.ndarray) -> int:
    """A letter that depends on every row, or the end of the answer about once in nine tokens."""
    digest = zlib.crc32(np.ascontiguousarray(rows, np.float32).tobytes())
    return STOP_ID if digest % 9 == 0 else ids_of("abcdefghijklmnopqrstuvwxyz ,.\n")[digest % 30]


def saying(*answers: str, stop: bool = True) -> Script:
    """A script that says ``answers``, one per prompt; then the end token (or, without ``stop``, the last letter).

    A prompt ends with the generation prompt's colon.
    """
    remaining = [ids_of(answer) for answer in answers]
    current: list[int] = []

    def script(rows: np.ndarray) -> int:
        if rows[-1][0] == ids_of(":")[0] and rows[-1][3] == 1:
            current[:] = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        if not current:
            return STOP_ID
        return current.pop(0) if len(current) > 1 or stop else current[0]

    return script


class Rig:
    """A session on fakes, with the fakes at hand."""

    def __init__(self, session: Session, decoder: FakeDecoder, vision: FakeVision) -> None:
        self.session, self.decoder, self.vision = session, decoder, vision


@pytest.fixture
def rig_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Opens sessions on fakes; closes them after the test."""
    opened: list[Session] = []

    def build(script: Script | None = None, *, context: int = CONTEXT, **options: int) -> Rig:
        bundle_options = {name: options.pop(name) for name in ("video_frames",) if name in options}
        path = tmp_path / f"bundle-{len(opened)}"
        fake_bundle(path, context=context, **bundle_options)
        decoder, vision = FakeDecoder(context, script), FakeVision()

        def open_fake(bundle: Bundle, *, slots: int, **options: object) -> FakeDecoder:
            decoder.open(slots)
            return decoder

        monkeypatch.setattr(startup, "open_decoder", open_fake)
        monkeypatch.setattr(startup, "open_vision", lambda bundle, *, threads: vision)
        opened.append(Session.open(path, **options))
        return Rig(opened[-1], decoder, vision)

    yield build
    for session in opened:
        session.close()
