"""Slots, chunks, rollback and refusals of the ONNX decoder, on a small random model at accuracy level 0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from runtime.decoder import OnnxDecoder, OnnxDecoderFiles, SessionSettings, onnx_decoder
from runtime.errors import BundleError, ClosedError, EngineError, InputError, PromptError
from tests import decoder_models as models

SHAPE = models.Shape()
TOLERANCE = 2e-5
SETTINGS = SessionSettings(threads=1, spin=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> OnnxDecoderFiles:
    folder = tmp_path_factory.mktemp("decoder")
    checkpoint = models.save_checkpoint(folder / "checkpoint", SHAPE)
    return models.export_decoder(checkpoint, folder / "bundle", accuracy_level=0, max_seq_len=96)


@pytest.fixture
def decoder(files: OnnxDecoderFiles) -> Iterator[OnnxDecoder]:
    opened = OnnxDecoder(files, SETTINGS, slots=2)
    yield opened
    opened.close()


def ids_of(count: int, seed: int = 5) -> list[int]:
    return np.random.default_rng(seed).integers(0, SHAPE.vocab, count).tolist()


def close(left: np.ndarray, right: np.ndarray) -> None:
    np.testing.assert_allclose(left, right, atol=TOLERANCE, rtol=0)


def test_prefill_in_chunks_equals_one_pass(decoder: OnnxDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    embeds = decoder.embed(ids_of(50))
    whole = decoder.prefill(0, embeds, num_logits=50)
    monkeypatch.setattr(onnx_decoder, "CHUNK_TOKENS", 7)
    for num_logits in (1, 5, 7, 8, 50):
        close(decoder.prefill(1, embeds, num_logits=num_logits), whole[-num_logits:])
        assert decoder.length(1) == 50
        decoder.truncate(1, 0)


def test_prefill_gives_a_new_array_each_time(decoder: OnnxDecoder) -> None:
    first = decoder.prefill(0, decoder.embed(ids_of(4)))
    kept = first.copy()
    decoder.prefill(0, decoder.embed(ids_of(4, seed=6)))
    decoder.decode(0, [1])
    assert np.array_equal(first, kept)


def test_prefill_onto_a_past_equals_one_pass(decoder: OnnxDecoder) -> None:
    embeds = decoder.embed(ids_of(30))
    whole = decoder.prefill(0, embeds)
    decoder.prefill(1, embeds[:11])
    close(decoder.prefill(1, embeds[11:]), whole)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_decoding_n_tokens_equals_n_times_one(decoder: OnnxDecoder, count: int) -> None:
    prompt, tokens = decoder.embed(ids_of(9)), ids_of(count, seed=8)
    decoder.prefill(0, prompt)
    decoder.prefill(1, prompt)
    together = decoder.decode(0, tokens)
    assert together.shape == (count, SHAPE.vocab)
    singly = [decoder.decode(1, [token])[0].copy() for token in tokens]
    close(together, np.stack(singly))


def test_decode_reads_the_token_table(decoder: OnnxDecoder) -> None:
    tokens = ids_of(12)
    by_embeds = decoder.prefill(0, decoder.embed(tokens), num_logits=12)
    close(decoder.decode(1, tokens), by_embeds)


def test_changing_the_number_of_tokens_rebinds_the_logits(decoder: OnnxDecoder) -> None:
    tokens = ids_of(10)
    expected = decoder.prefill(0, decoder.embed(tokens), num_logits=10)
    at = 0
    for count in (1, 3, 1, 1, 4):
        close(decoder.decode(1, tokens[at : at + count]), expected[at : at + count])
        at += count


def test_truncate_and_redo_gives_the_same_logits(decoder: OnnxDecoder) -> None:
    decoder.prefill(0, decoder.embed(ids_of(9)))
    first = decoder.decode(0, ids_of(5, seed=3)).copy()
    decoder.truncate(0, 9)
    decoder.decode(0, ids_of(20, seed=4))
    decoder.truncate(0, 9)
    assert decoder.length(0) == 9
    assert np.array_equal(decoder.decode(0, ids_of(5, seed=3)), first)


def test_interleaved_slots_do_not_disturb_each_other(decoder: OnnxDecoder) -> None:
    tokens = {0: ids_of(12, seed=1), 1: ids_of(12, seed=2)}
    expected = {}
    for slot in (0, 1):
        expected[slot] = decoder.decode(slot, tokens[slot]).copy()
        decoder.truncate(slot, 0)
    for at in range(12):
        for slot in (0, 1):
            close(decoder.decode(slot, [tokens[slot][at]])[0], expected[slot][at])


def test_logits_of_a_slot_outlive_a_call_for_another(decoder: OnnxDecoder) -> None:
    one = decoder.decode(0, [3])
    kept = one.copy()
    decoder.decode(1, [4])
    assert np.array_equal(one, kept)


def test_copied_prefix_continues_like_the_source(decoder: OnnxDecoder) -> None:
    tokens = ids_of(14)
    whole = decoder.decode(0, tokens).copy()
    decoder.decode(1, ids_of(30, seed=9))
    decoder.copy_prefix(0, 1, 6)
    assert (decoder.length(0), decoder.length(1)) == (14, 6)
    close(decoder.decode(1, tokens[6:]), whole[6:])
    with pytest.raises(InputError, match="slot 0 has 14 positions, 15"):
        decoder.copy_prefix(0, 1, 15)


def test_the_last_position_fits_and_one_more_is_refused_before_anything_runs(decoder: OnnxDecoder) -> None:
    decoder.prefill(0, decoder.embed(ids_of(95)))
    with pytest.raises(PromptError, match="2 positions after 95 do not fit into the context of 96") as caught:
        decoder.decode(0, [1, 2])
    assert caught.value.hint is not None
    assert decoder.length(0) == 95
    decoder.decode(0, [1])
    with pytest.raises(PromptError, match="after 96"):
        decoder.decode(0, [1])
    with pytest.raises(PromptError, match="97 positions after 0"):
        decoder.prefill(1, np.zeros((97, SHAPE.hidden), np.float32))


def test_wrong_requests_are_refused_and_leave_the_slot_alone(decoder: OnnxDecoder) -> None:
    decoder.decode(0, [1, 2])
    embeds = decoder.embed(ids_of(3))
    refused = [
        lambda: decoder.prefill(0, embeds[:, :-1]),
        lambda: decoder.prefill(0, embeds.astype(np.float64)),  # type: ignore[arg-type]
        lambda: decoder.prefill(0, embeds[:0]),
        lambda: decoder.prefill(0, embeds, num_logits=0),
        lambda: decoder.prefill(0, embeds, num_logits=4),
        lambda: decoder.decode(0, []),
        lambda: decoder.decode(0, [SHAPE.vocab]),
        lambda: decoder.decode(0, [-1]),
        lambda: decoder.truncate(0, 3),
        lambda: decoder.decode(2, [1]),
        lambda: decoder.length(-1),
        lambda: decoder.open(0),
    ]
    for request in refused:
        with pytest.raises(InputError):
            request()
    assert decoder.length(0) == 2


def test_a_failure_of_the_engine_leaves_the_length_and_names_the_position(
    decoder: OnnxDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = decoder.decode(1, ids_of(12))[-1].copy()
    decoder.decode(0, ids_of(12)[:11])

    session, calls = decoder._session, []

    class Failing:
        """The second chunk of the prefill fails."""

        def run_with_iobinding(self, binding: object, options: object) -> None:
            calls.append(binding)
            if len(calls) == 2:
                raise RuntimeError("no memory")
            session.run_with_iobinding(binding, options)

    monkeypatch.setattr(onnx_decoder, "CHUNK_TOKENS", 2)
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_session", Failing())
        with pytest.raises(EngineError, match="at position 13: no memory"):
            decoder.prefill(0, decoder.embed(ids_of(6)))
    assert decoder.length(0) == 11
    close(decoder.decode(0, ids_of(12)[11:])[0], expected)


def test_opening_again_empties_the_slots(decoder: OnnxDecoder) -> None:
    decoder.decode(0, [1])
    decoder.open(3)
    assert [decoder.length(slot) for slot in range(3)] == [0, 0, 0]


def test_use_after_close_is_refused(files: OnnxDecoderFiles) -> None:
    decoder = OnnxDecoder(files, SETTINGS)
    decoder.close()
    decoder.close()
    with pytest.raises(ClosedError):
        decoder.decode(0, [1])
    with pytest.raises(ClosedError):
        decoder.embed([1])


@pytest.mark.parametrize("field", ["layers", "kv_heads", "head_dim", "vocab"])
def test_a_manifest_that_does_not_fit_the_graph_is_refused(files: OnnxDecoderFiles, field: str) -> None:
    wrong = replace(files, **{field: getattr(files, field) + 1})
    with pytest.raises(BundleError, match=r"has the shape .*, by the manifest"):
        OnnxDecoder(wrong, SETTINGS)


def test_a_damaged_graph_is_refused(files: OnnxDecoderFiles, tmp_path: Path) -> None:
    broken = tmp_path / "decoder.onnx"
    broken.write_bytes(files.model.read_bytes()[:-100])
    with pytest.raises(BundleError, match="refuses it"):
        OnnxDecoder(replace(files, model=broken), SETTINGS)


def test_two_threads_give_the_same_logits(files: OnnxDecoderFiles, decoder: OnnxDecoder) -> None:
    spinning = OnnxDecoder(files, SessionSettings(threads=2, spin=True))
    tokens = ids_of(20)
    close(spinning.decode(0, tokens), decoder.decode(0, tokens))
    spinning.close()
