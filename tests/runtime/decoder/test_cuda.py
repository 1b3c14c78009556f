"""The CUDA decoder on the emulator, a small random model: steps of several tokens, graphs, chunks, slots, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from kernels.driver.opening import open_device
from kernels.errors import DeviceError
from runtime.decoder.cuda import CudaDecoder, CudaDecoderFiles, graphs, plan, shape
from runtime.errors import ClosedError, EngineError, InputError, PromptError
from runtime.fusion import PlacedIds
from runtime.sampling import Sampler
from runtime.types import GenerationParams
from tests.runtime.decoder.cuda_bundles import SMALL, FailingDevice, needs_compiler, opened, small_files

LENGTH = 96


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> CudaDecoderFiles:
    needs_compiler()
    return small_files(tmp_path_factory.mktemp("decoder"), max_seq_len=LENGTH)


@pytest.fixture(scope="module")
def shared(files: CudaDecoderFiles) -> Iterator[CudaDecoder]:
    with opened(files, slots=2) as decoder:
        yield decoder


@pytest.fixture
def decoder(shared: CudaDecoder) -> CudaDecoder:
    """The decoder of this file with empty slots."""
    for slot in (0, 1):
        shared.truncate(slot, 0)
    return shared


def ids_of(count: int, seed: int = 5) -> list[int]:
    return np.random.default_rng(seed).integers(0, SMALL.vocab, count).tolist()


def same(left: np.ndarray, right: np.ndarray) -> None:
    assert np.isfinite(left).all()
    np.testing.assert_array_equal(left, right)


def close(left: np.ndarray, right: np.ndarray) -> None:
    """GEMM and GEMV add in another order: activations differ by roundings of 2^-11, logits are of several units."""
    np.testing.assert_allclose(left, right, atol=0.05, rtol=0)


# --- steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["f16", "i8"])
def test_n_tokens_together_give_bit_for_bit_what_single_steps_give(tmp_path: Path, kv: str) -> None:
    """On both sides of a bucket's boundary and across it, where other graphs launch more splits."""
    needs_compiler()
    files = small_files(tmp_path, group_size=128, max_seq_len=600)
    prompt = np.random.default_rng(1).normal(0, 1, (505, SMALL.hidden)).astype(np.float32)
    tokens = ids_of(9, seed=8)
    with opened(files, slots=2, kv=kv) as decoder:
        decoder.prefill(0, prompt)
        singly = np.concatenate([decoder.decode(0, [token]) for token in tokens])
        assert decoder.length(0) == shape.FIRST_BUCKET + 2
        for count in range(1, 9):
            decoder.copy_prefix(0, 1, len(prompt))
            together = [decoder.decode(1, tokens[at : at + count]) for at in range(0, len(tokens), count)]
            same(np.concatenate(together), singly)


def test_more_than_eight_tokens_are_steps_of_eight(decoder: CudaDecoder) -> None:
    tokens = ids_of(19)
    singly = np.concatenate([decoder.decode(1, [token]) for token in tokens])
    same(decoder.decode(0, tokens), singly)


def test_a_short_prompt_gives_what_a_step_of_its_tokens_gives(decoder: CudaDecoder) -> None:
    tokens = ids_of(8)
    by_step = decoder.decode(1, tokens)
    same(decoder.prefill(0, decoder.embed(tokens), num_logits=8), by_step)
    decoder.truncate(0, 0)
    same(decoder.prefill(0, decoder.embed(tokens)), by_step[-1:])


def test_a_long_prompt_gives_what_steps_give(decoder: CudaDecoder) -> None:
    tokens = ids_of(40)
    whole = decoder.prefill(0, decoder.embed(tokens), num_logits=40)
    assert np.abs(whole).max() > 2
    close(whole, decoder.decode(1, tokens))
    for num_logits in (1, 5, 9):
        decoder.truncate(0, 0)
        close(decoder.prefill(0, decoder.embed(tokens), num_logits=num_logits), whole[-num_logits:])


@pytest.mark.parametrize("options", [{}, {"kv": "i8"}, {"embeddings": "i8"}])
def test_replayed_graphs_give_what_single_launches_give(files: CudaDecoderFiles, options: dict[str, str]) -> None:
    tokens = ids_of(12)
    with opened(files, **options) as decoder, opened(files, graphs=False, **options) as plain:
        for at in range(0, 12, 2):
            same(decoder.decode(0, tokens[at : at + 2]), plain.decode(0, tokens[at : at + 2]))
        assert (len(decoder._engine._graphs), len(plain._engine._graphs)) == (1, 0)


def test_graphs_are_bounded_and_the_one_used_longest_ago_gives_way(
    files: CudaDecoderFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    tokens = ids_of(4)
    with opened(files) as decoder:
        for count in (1, 2, 3, 1, 2, 1, 3):
            decoder.truncate(0, 0)
            decoder.decode(0, tokens[:count])
        assert decoder._engine.device.live()["graph"] == len(decoder._engine._graphs) == 2
        assert {key[0] for key in decoder._engine._graphs._graphs} == {3, 1}


def test_a_backend_that_cannot_capture_launches_one_by_one_and_says_so(
    files: CudaDecoderFiles, caplog: pytest.LogCaptureFixture
) -> None:
    device = open_device("emulator")
    refusing = FailingDevice(device, DeviceError("pycuda has no CUDA graphs"), "capture", fails_at=1)
    tokens = ids_of(3)
    with opened(files, device=refusing) as decoder, opened(files, graphs=False) as plain:
        found = [decoder.decode(0, [token]) for token in tokens]
        for row, token in zip(found, tokens, strict=True):
            same(row, plain.decode(0, [token]))
        assert (refusing.calls, len(decoder._engine._graphs)) == (1, 0)
    assert "launched one by one: pycuda has no CUDA graphs" in caplog.text
    device.close()


def test_a_bucket_is_the_least_power_of_two_that_holds_the_context(files: CudaDecoderFiles) -> None:
    model = replace(files, max_seq_len=5000)
    assert [model.bucket(length) for length in (1, 512, 513, 1025, 4096, 4097)] == [512, 512, 1024, 2048, 4096, 5000]
    assert files.bucket(1) == LENGTH


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_bf16_activations_differ_from_f16_by_their_roundings(tmp_path: Path, group_size: int) -> None:
    """8 bits of a product against 11: logits of several units move by some percent of one."""
    needs_compiler()
    tokens = ids_of(20)
    found = []
    for kind in ("f16", "bf16"):
        files = small_files(tmp_path / kind, group_size=group_size, activations=kind)
        with opened(files, slots=2, kv="i8" if group_size == 32 else "f16") as decoder:
            found.append(decoder.prefill(0, decoder.embed(tokens), num_logits=20))
            same(decoder.decode(1, tokens[:3]), np.concatenate([redone(decoder, tokens[: n + 1]) for n in range(3)]))
    assert 0 < np.abs(found[0] - found[1]).mean() < 0.05
    assert np.abs(found[0]).mean() > 1


def test_a_head_of_eight_bits_is_nearer_to_the_floats_than_one_of_four(tmp_path: Path) -> None:
    """Two 4-bit halves side by side, fed with the same row twice. Final norms are what both heads are fed with."""
    needs_compiler()
    tokens, found = ids_of(12), {}
    for bits in (4, 8):
        files = small_files(tmp_path / str(bits), head_bits=bits)
        assert (files.head_bits, files.head_copies) == (bits, bits // 4)
        with opened(files) as decoder:
            found[bits] = decoder.decode(0, tokens)
            source = decoder._engine._fixed.arrays["head_input"].rows(0, 4)  # of the last four tokens
            normed = np.empty(source.shape, np.float16)
            decoder._engine.device.copy_out(normed, source.ptr, decoder._engine.stream)
            decoder._engine.stream.synchronize()
    np.testing.assert_array_equal(normed[:, : SMALL.hidden], normed[:, SMALL.hidden :])
    exact = normed[:, : SMALL.hidden].astype(np.float64) @ SMALL.weights()["lm_head.weight"].astype(np.float64).T
    coarse, fine = (np.abs(found[bits][-4:] - exact).max() for bits in (4, 8))
    assert fine < coarse / 8  # 16 times as many levels


def redone(decoder: CudaDecoder, tokens: list[int]) -> np.ndarray:
    """The last logits of single steps on an empty slot 0."""
    decoder.truncate(0, 0)
    return [decoder.decode(0, [token]) for token in tokens][-1]


# --- weights in pieces ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embeddings", ["f16", "i8"])
def test_head_and_table_in_several_pieces_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embeddings: str
) -> None:
    needs_compiler()
    files = small_files(tmp_path, replace(SMALL, vocab=3000), max_seq_len=LENGTH)
    tokens = np.random.default_rng(3).integers(0, 3000, 12).tolist()
    draws = Sampler(GenerationParams(), 3000).draws()
    found = []
    for limit in (plan.MAX_PIECE_BYTES, 100_000):
        monkeypatch.setattr(plan, "MAX_PIECE_BYTES", limit)
        with opened(files, embeddings=embeddings) as decoder:
            placed = PlacedIds(np.array(tokens, np.int32), np.empty((0, files.hidden), np.float32))
            logits = [decoder.prefill_ids(0, placed, num_logits=12), decoder.decode(0, tokens)]
            with closing(decoder.sampled(0, 5, draws)) as following:
                found.append((logits, list(islice(following, 4))))
    assert (len(plan.head_rows(files)), len(plan.table_rows(files, "f16"))) == (3, 8)
    for left, right in zip(found[0][0], found[1][0], strict=True):
        same(left, right)
    assert [token for token, _ in found[0][1]] == [token for token, _ in found[1][1]]
    assert max(max(row.argmax(-1)) for row in found[0][0]) > 2048  # the last piece has its say


# --- prompts --------------------------------------------------------------------------------------------------------


def test_prefill_in_chunks_equals_one_pass(tmp_path: Path) -> None:
    """600 positions are chunks of 512 and 88; logits may be wanted of both."""
    needs_compiler()
    files = small_files(tmp_path, group_size=64, max_seq_len=600)
    prompt = np.random.default_rng(2).normal(0, 1, (600, SMALL.hidden)).astype(np.float32)
    with opened(files, slots=2) as decoder:
        whole = decoder.prefill(0, prompt, num_logits=100)
        decoder.prefill(1, prompt[:300])
        close(decoder.prefill(1, prompt[300:], num_logits=100), whole)
        assert decoder.length(0) == decoder.length(1) == 600


def test_ids_and_image_rows_give_what_their_embeddings_give(decoder: CudaDecoder) -> None:
    images = np.random.default_rng(4).normal(0, 1, (7, SMALL.hidden)).astype(np.float32)
    ids = np.array([3, -1, -2, -3, 150, 8, -4, -5, -6, -7, 60, 61], np.int32)
    embeds = decoder.embed(np.where(ids < 0, 0, ids).astype(np.int64))
    embeds[ids < 0] = images
    placed = PlacedIds(ids, images)
    same(decoder.prefill_ids(0, placed, num_logits=12), decoder.prefill(1, embeds, num_logits=12))
    for slot, at in ((0, 4), (0, 9)):  # in parts, the second of which begins within an image
        decoder.truncate(slot, 0)
        decoder.prefill_ids(slot, placed.part(0, at))
        last = decoder.prefill_ids(slot, placed.part(at, 12))
        decoder.truncate(1, 0)
        decoder.prefill(1, embeds[:at])
        same(last, decoder.prefill(1, embeds[at:]))


@pytest.mark.parametrize("embeddings", ["f16", "i8"])
def test_embed_gives_the_rows_that_a_step_looks_up(files: CudaDecoderFiles, embeddings: str) -> None:
    tokens = ids_of(8)
    with opened(files, slots=2, embeddings=embeddings) as decoder:
        same(decoder.prefill(0, decoder.embed(tokens), num_logits=8), decoder.decode(1, tokens))


# --- slots ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["f16", "i8"])
def test_truncate_and_redo_gives_the_same_logits(files: CudaDecoderFiles, kv: str) -> None:
    with opened(files, kv=kv) as decoder:
        decoder.prefill(0, decoder.embed(ids_of(20)))
        first = decoder.decode(0, ids_of(5, seed=3))
        decoder.truncate(0, 20)
        decoder.decode(0, ids_of(30, seed=4))
        decoder.truncate(0, 20)
        assert decoder.length(0) == 20
        same(decoder.decode(0, ids_of(5, seed=3)), first)


def test_interleaved_slots_do_not_disturb_each_other(decoder: CudaDecoder) -> None:
    tokens = {slot: ids_of(6, seed=slot) for slot in (0, 1)}
    expected = {}
    for slot in (0, 1):
        expected[slot] = decoder.decode(slot, tokens[slot])
        decoder.truncate(slot, 0)
    for at in range(6):
        for slot in (0, 1):
            same(decoder.decode(slot, [tokens[slot][at]])[0], expected[slot][at])


@pytest.mark.parametrize("kv", ["f16", "i8"])
def test_copied_prefix_continues_like_the_source(files: CudaDecoderFiles, kv: str) -> None:
    tokens = ids_of(14)
    with opened(files, slots=2, kv=kv) as decoder:
        whole = decoder.decode(0, tokens)
        decoder.decode(1, ids_of(30, seed=9))
        decoder.copy_prefix(0, 1, 6)
        assert (decoder.length(0), decoder.length(1)) == (14, 6)
        same(decoder.decode(1, tokens[6:]), whole[6:])
        decoder.copy_prefix(0, 1, 0)
        assert decoder.length(1) == 0
        with pytest.raises(InputError, match="slot 0 has 14 positions, 15"):
            decoder.copy_prefix(0, 1, 15)


def test_opening_again_empties_the_slots_and_frees_the_old_ones(files: CudaDecoderFiles) -> None:
    tokens = ids_of(3)
    with opened(files, slots=2) as decoder:
        decoder.decode(1, tokens)
        expected = decoder.decode(0, tokens)
        decoder.truncate(0, 0)
        decoder.decode(0, tokens)  # captured
        before = decoder._engine.device.live()["memory"]
        decoder.open(2)
        assert [decoder.length(slot) for slot in range(2)] == [0, 0]
        assert decoder._engine.device.live()["memory"] == before
        for _ in range(3):
            decoder.truncate(0, 0)
            same(decoder.decode(0, tokens), expected)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_the_last_position_fits_and_one_more_is_refused_before_anything_runs(decoder: CudaDecoder) -> None:
    decoder.prefill(0, decoder.embed(ids_of(95)))
    with pytest.raises(PromptError, match="2 positions after 95 do not fit into the context of 96") as caught:
        decoder.decode(0, [1, 2])
    assert caught.value.hint is not None
    assert decoder.length(0) == 95
    assert np.isfinite(decoder.decode(0, [1])).all()
    with pytest.raises(PromptError, match="after 96"):
        decoder.decode(0, [1])
    with pytest.raises(PromptError, match="97 positions after 0"):
        decoder.prefill(1, np.zeros((97, SMALL.hidden), np.float32))
    with pytest.raises(PromptError, match="1 positions after 96"):
        decoder.sampled(0, 1, Sampler(GenerationParams(), SMALL.vocab).draws())


def test_wrong_requests_are_refused_and_leave_the_slot_alone(decoder: CudaDecoder) -> None:
    decoder.decode(0, [1, 2])
    embeds = decoder.embed(ids_of(3))
    no_image = np.empty((0, SMALL.hidden), np.float32)
    refused = [
        lambda: decoder.prefill(0, embeds[:, :-1]),
        lambda: decoder.prefill(0, embeds.astype(np.float64)),  # type: ignore[arg-type]
        lambda: decoder.prefill(0, embeds[:0]),
        lambda: decoder.prefill(0, embeds, num_logits=0),
        lambda: decoder.prefill(0, embeds, num_logits=4),
        lambda: decoder.prefill_ids(0, PlacedIds(np.array([SMALL.vocab], np.int32), no_image)),
        lambda: decoder.prefill_ids(0, PlacedIds(np.array([1], np.int32), no_image[:, 1:])),
        lambda: decoder.decode(0, []),
        lambda: decoder.decode(0, [SMALL.vocab]),
        lambda: decoder.decode(0, [-1]),
        lambda: decoder.sampled(0, SMALL.vocab, Sampler(GenerationParams(), SMALL.vocab).draws()),
        lambda: decoder.truncate(0, 3),
        lambda: decoder.decode(2, [1]),
        lambda: decoder.length(-1),
        lambda: decoder.open(0),
    ]
    for request in refused:
        with pytest.raises(InputError):
            request()
    assert decoder.length(0) == 2


def test_an_image_row_that_does_not_exist_is_an_error_and_leaves_the_slot(decoder: CudaDecoder) -> None:
    image = np.ones((1, SMALL.hidden), np.float32)
    decoder.decode(0, [1])
    with pytest.raises(EngineError, match="an image row does not exist"):
        decoder.prefill_ids(0, PlacedIds(np.array([1, -1, -3], np.int32), image))
    assert decoder.length(0) == 1
    assert np.isfinite(decoder.decode(0, [2])).all()


def test_a_table_with_more_rows_than_the_head_is_on_the_device_as_a_whole(
    files: CudaDecoderFiles, decoder: CudaDecoder, tmp_path: Path
) -> None:
    """Placeholders may have rows that the head does not know."""
    stored = np.fromfile(files.token_embeds, np.float16).reshape(-1, SMALL.hidden)
    longer = np.concatenate([stored, stored[:3]])
    longer.tofile(tmp_path / "table.bin")
    more = replace(files, token_embeds=tmp_path / "table.bin", embed_rows=len(longer))
    with opened(more) as other:
        same(other.decode(0, [5, SMALL.vocab + 2]), decoder.decode(0, [5, 2]))
        with pytest.raises(PromptError, match="outside the table of 203 rows"):
            other.decode(0, [SMALL.vocab + 3])


def test_use_after_close_is_refused(files: CudaDecoderFiles) -> None:
    with opened(files) as decoder:
        pass
    decoder.close()
    for request in (lambda: decoder.decode(0, [1]), lambda: decoder.embed([1]), decoder.memory):
        with pytest.raises(ClosedError):
            request()
