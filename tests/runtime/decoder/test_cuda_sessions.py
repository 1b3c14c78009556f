"""Sessions on the demo models with the CUDA decoder, on the emulator: their tokens, their caches, and every kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from kernels.driver.opening import open_device
from kernels.registry import KERNELS
from runtime.bundle import Bundle
from runtime.decoder import CudaOptions, open_decoder
from runtime.decoder.cuda import CudaDecoder
from runtime.decoder.cuda.cache import KvCache
from runtime.errors import EngineError
from runtime.prompt import ImagePart, Message
from runtime.session import Session
from runtime.types import GenerationParams
from tests.runtime.decoder.cuda_bundles import demo_bundle, go_on_for_ever, needs_compiler

NAMES = ("demo-llava", "demo-nvila")
QUESTION = "Describe the image."
FILTERED = GenerationParams(temperature=0.8, top_k=50, top_p=0.95, min_p=0.01, repetition_penalty=1.1, seed=11)
EXEMPT = {"dequantize"}  # for cuBLASLt; no session launches it


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    needs_compiler()
    folder = tmp_path_factory.mktemp("bundles")
    return {name: demo_bundle(name, folder / name) for name in NAMES}


def opened(bundle: Bundle, **options: Any) -> Session:
    cuda = CudaOptions(device="emulator", **options)
    return Session.open(bundle.path, "cuda", threads=1, verify="none", cuda=cuda)


def decoder_of(session: Session) -> CudaDecoder:
    decoder = session._pipeline._decoder
    assert isinstance(decoder, CudaDecoder)
    return decoder


def picture(seed: int = 0, height: int = 48, width: int = 96) -> np.ndarray:
    """A red square on a noisy ground."""
    image = np.random.default_rng(seed).integers(90, 130, (height, width, 3), np.uint8)
    image[10:34, 20:44] = (200, 30, 30)
    return image


def prompt_of(session: Session, tokens: int, images: int = 0) -> str:
    """A question whose prompt, with so many of `picture()`, has this number of tokens."""
    from runtime.pictures import lay_out, take_pictures

    pipeline = session._pipeline
    shown = take_pictures([picture()] * images, None, "rgb", video_frames=1)
    layouts = [each.layout for each in lay_out(shown, pipeline.tiling, [list(range(images))])]
    for letters in range(2 * tokens):
        for end in ("", "?", " ?"):
            text = "a" + " b" * letters + end
            parts = (*(ImagePart(index) for index in range(images)), text)
            if len(pipeline.encode([Message("user", parts)], layouts).token_ids) == tokens:
                return text
    raise AssertionError(f"no question makes {tokens} tokens")


# --- tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_sixteen_greedy_tokens_are_those_of_the_onnx_decoder_with_and_without_graphs(
    bundles: dict[str, Bundle], name: str
) -> None:
    """The same integers, in f32 there and in f16 here; one question with a picture, one without."""
    answers = []
    for kind, graphs in (("onnx", True), ("cuda", True), ("cuda", False)):
        cuda = CudaOptions(device="emulator", graphs=graphs)
        with Session.open(bundles[name].path, kind, threads=1, verify="none", chats=0, cuda=cuda) as session:
            assert session.decoder_kind == kind
            go_on_for_ever(session)
            answers.append([session.generate(QUESTION, images, max_new_tokens=16) for images in ([picture()], [])])
    onnx, graphed, plain = answers
    assert [each.token_ids for each in graphed] == [each.token_ids for each in onnx]
    assert [(each.token_ids, each.logprobs) for each in graphed] == [(e.token_ids, e.logprobs) for e in plain]
    assert all(len(each.token_ids) == 16 for each in graphed)
    for here, there in zip(graphed, onnx, strict=True):
        np.testing.assert_allclose(here.logprobs, there.logprobs, atol=0.05)


# --- caches ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def session(request: pytest.FixtureRequest, bundles: dict[str, Bundle]) -> Iterator[Session]:
    with opened(bundles[request.param]) as session:
        yield session


def check_answer_slot(session: Session) -> None:
    """The cache's list of tokens is as long as what the decoder holds."""
    assert len(session._pipeline.slots._answers[0].ids) == decoder_of(session).length(0)


@pytest.mark.parametrize("params", [GenerationParams(), FILTERED], ids=["greedy", "filtered"])
def test_a_chat_gives_what_a_fresh_request_with_the_whole_conversation_gives(
    session: Session, params: GenerationParams
) -> None:
    said: list[Message] = []
    with session.chat() as chat:
        for question, images in ((QUESTION, [picture()]), ("How many?", []), ("Really?", [])):
            answer = chat.generate(question, images, params=params, max_new_tokens=6)
            said.append(Message("user", (*(ImagePart(0) for _ in images), question)))
            fresh = session.generate(said, [picture()], params=params, max_new_tokens=6)
            assert answer.token_ids == fresh.token_ids
            # What was in the cache came from steps, and is prefilled afresh there: other roundings of f16.
            np.testing.assert_allclose(answer.logprobs, fresh.logprobs, atol=0.05)
            said.append(Message("assistant", (answer.text,)))
            if len(said) > 2:
                assert answer.usage.cached_tokens > answer.usage.prompt_tokens // 3
            cache = chat._cache
            assert cache.slot is not None and len(cache.ids) == decoder_of(session).length(cache.slot)
            check_answer_slot(session)


def test_every_end_of_an_answer_leaves_list_and_cache_alike(session: Session) -> None:
    whole = session.generate(QUESTION, [picture()], max_new_tokens=24)
    check_answer_slot(session)
    prompt = whole.usage.prompt_tokens
    if whole.finish_reason == "stop":  # the end token is not in the cache, the last word is
        assert decoder_of(session).length(0) == prompt + len(whole.token_ids)
    short = session.generate(QUESTION, [picture()], max_new_tokens=3)
    assert (short.finish_reason, short.token_ids) == ("length", whole.token_ids[:3])
    assert decoder_of(session).length(0) == prompt + 2
    check_answer_slot(session)
    word = whole.text.split()[1]
    ended = session.generate(QUESTION, [picture()], params=GenerationParams(stop=(word,)))
    assert (ended.finish_reason, word in ended.text) == ("stop", False)
    check_answer_slot(session)


def test_cancelling_ends_within_one_token(session: Session) -> None:
    stream = session.stream(QUESTION, [picture()], max_new_tokens=24)
    taken = []
    stream_of_deltas = iter(stream)
    taken.append(next(stream_of_deltas))
    stream.cancel()
    answer = stream.answer()
    whole = session.generate(QUESTION, [picture()], max_new_tokens=24)
    assert answer.finish_reason in ("cancelled", "stop")  # the answer may have been over before it was heard
    assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
    check_answer_slot(session)


def test_memory_report_names_every_purpose_and_counts_what_is_allocated(session: Session) -> None:
    session.generate(QUESTION, [picture()], max_new_tokens=1)
    report = session.memory_report()
    by_purpose = {use.purpose: use for use in report.uses}
    assert by_purpose.keys() >= {"weights", "LM head", "token table", "KV cache", "activations", "pictures", "vision"}
    assert [use.bytes for use in report.uses] == sorted((use.bytes for use in report.uses), reverse=True)
    assert report.total_bytes == report.device_bytes + report.host_bytes == sum(use.bytes for use in report.uses)
    decoder = session.manifest.decoder
    cache = 2 * 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * decoder.max_seq_len  # bytes of a slot
    assert by_purpose["KV cache"].bytes == pytest.approx(2 * cache, rel=1e-3)  # the answers' slot and a chat's
    exact = sum(use.bytes for use in report.uses if use.exact and use.place == "device")
    device = decoder_of(session)._engine.device
    free, total = device.memory_info()
    assert exact == total - free


def test_an_int8_cache_is_within_half_a_step_of_the_other(bundles: dict[str, Bundle]) -> None:
    """Layer 0 sees the same rows in both: a value differs by half a step, and by what rounding the scale to f16 cuts
    off the largest one: 127 steps of 2^-11. Later layers see other attention, so for them: what the model says."""
    bundle = bundles["demo-nvila"]
    tokens = np.random.default_rng(3).integers(0, 400, 60)
    caches, logits = {}, {}
    for kv in ("f16", "i8"):
        decoder = open_decoder(bundle, kind="cuda", cuda=CudaOptions(device="emulator", kv=kv))  # type: ignore[arg-type]
        logits[kv] = decoder.prefill(0, decoder.embed(tokens), num_logits=60).astype(np.float64)
        caches[kv] = layer_rows(decoder._engine._cache, bundle, kv)  # type: ignore[attr-defined]
        decoder.close()
    for wide, (narrow, scales) in zip(caches["f16"], caches["i8"], strict=True):
        bound = scales * (0.5 + 127 * 2.0**-11)
        assert (np.abs(narrow - wide[0])[:, :60] <= bound[:, :60, None]).all()
        assert np.abs(wide[0][:, :60]).max() > 1
    log_p, log_q = (rows - np.log(np.exp(rows).sum(-1, keepdims=True)) for rows in (logits["f16"], logits["i8"]))
    assert (np.exp(log_p) * (log_p - log_q)).sum(-1).mean() < 2e-3


def layer_rows(cache: KvCache, bundle: Bundle, kv: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(values f64 [heads, positions, dims], scales [heads, positions]) of keys and of values of layer 0, slot 0."""
    section = bundle.manifest.decoder
    shape = (section.kv_heads, section.max_seq_len, section.head_dim)
    found = []
    for part in cache._parts[:2]:
        raw = np.empty(part[0].nbytes, np.uint8)
        cache._device.copy_out(raw, part[0].ptr, cache._stream)
        cache._stream.synchronize()
        if kv == "f16":
            found.append((raw.view(np.float16).reshape(shape).astype(np.float64), np.ones(shape[:2])))
            continue
        values = int(np.prod(shape))
        scales = raw[values:].view(np.float16).reshape(shape[:2]).astype(np.float64)
        found.append((raw[:values].view(np.int8).reshape(shape) * scales[:, :, None], scales))
    return found


# --- every kernel ---------------------------------------------------------------------------------------------------

SESSIONS = [
    # model, prompt tokens, pictures, options, how tokens are chosen
    ("demo-llava", 9, 0, {}, GenerationParams()),
    ("demo-llava", 70, 1, {"kv": "i8", "embeddings": "i8"}, FILTERED),
    ("demo-nvila", 70, 1, {"embeddings": "i8"}, GenerationParams()),
    ("demo-nvila", 300, 1, {"kv": "i8", "embeddings": "f16"}, FILTERED),
    ("demo-llava", 300, 0, {"graphs": False}, FILTERED),
]


def test_sessions_launch_every_kernel_of_the_registry(bundles: dict[str, Bundle]) -> None:
    launched: Counter[str] = Counter()
    for name, tokens, images, options, params in SESSIONS:
        with opened(bundles[name], **options) as session:
            prompt = prompt_of(session, tokens, images)
            answer = session.generate(prompt, [picture()] * images, params=params, max_new_tokens=4)
            assert answer.usage.prompt_tokens == tokens
            decoder = decoder_of(session)
            drafts = session._owner.call(lambda decoder=decoder: decoder.decode(0, [5, 6, 7, 8]))
            assert drafts.shape == (4, session.manifest.decoder.vocab) and np.isfinite(drafts).all()
            launched += decoder._engine.kernels.launched
    symbols = {entry: kernel.symbol for kernel in KERNELS.values() for entry in kernel.entries}
    found = {symbols[entry] for entry in launched}
    assert KERNELS.keys() - found == EXEMPT


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_device_of_the_application_stays_open_and_is_left_empty(bundles: dict[str, Bundle]) -> None:
    device = open_device("emulator")
    cuda = CudaOptions(device=device)
    with Session.open(bundles["demo-llava"].path, "cuda", threads=1, verify="none", cuda=cuda) as session:
        session.generate("?", max_new_tokens=2)
        assert device.live()["memory"] > 0
    assert not any(device.live().values())
    device.create_stream().close()
    device.close()


def test_a_failure_in_an_answer_leaves_the_session_usable(bundles: dict[str, Bundle]) -> None:
    with opened(bundles["demo-llava"]) as session:
        expected = session.generate(QUESTION, [picture()], max_new_tokens=4)
        engine = decoder_of(session)._engine
        run = engine.run

        def refuse(span: Any) -> None:
            engine.run = run  # type: ignore[method-assign]
            raise EngineError("the engine stumbled")

        engine.run = refuse  # type: ignore[method-assign]
        with pytest.raises(EngineError, match="stumbled"):
            session.generate(QUESTION, [picture()], max_new_tokens=4)
        again = session.generate(QUESTION, [picture()], max_new_tokens=4)
        assert (again.token_ids, again.logprobs) == (expected.token_ids, expected.logprobs)
