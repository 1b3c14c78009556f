"""Several answers at once on the demo model, by both decoders (CUDA: emulator): tokens are those written alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from kernels.errors import StickyError
from runtime.bundle import Bundle
from runtime.decoder import CudaOptions
from runtime.decoder.cuda import CudaDecoder
from runtime.errors import DeviceLostError
from runtime.session import Session
from runtime.types import Delta, GenerationParams
from tests.runtime.decoder.cuda_bundles import FailingDevice, demo_bundle, go_on_for_ever, needs_compiler
from tests.runtime.test_session_parallel import Hold

GREEDY = GenerationParams(max_new_tokens=14)
ASKED = [
    ("Describe the image.", 1, GREEDY),
    ("What is that?", 0, GenerationParams(temperature=0.9, seed=5, max_new_tokens=10)),
    (
        "How many?",
        2,
        GenerationParams(temperature=1.4, top_k=40, top_p=0.9, repetition_penalty=1.2, seed=6, max_new_tokens=14),
    ),
    ("Where?", 3, GenerationParams(temperature=0.7, seed=7, max_new_tokens=3)),
]


def picture(number: int) -> list[np.ndarray]:
    if number == 0:
        return []
    image = np.random.default_rng(number).integers(90, 130, (48, 60 + 10 * number, 3), np.uint8)
    image[10:34, 20:44] = (200, 30 * number, 30)
    return [image]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    needs_compiler()
    return demo_bundle("demo-llava", tmp_path_factory.mktemp("bundle") / "demo-llava")


def opened(bundle: Bundle, kind: str, **options: int) -> Session:
    cuda = CudaOptions(device="emulator")
    session = Session.open(bundle.path, kind, threads=1, verify="none", cuda=cuda, **options)  # type: ignore[arg-type]
    go_on_for_ever(session)
    return session


@pytest.fixture(scope="module", params=["onnx", "cuda"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def expected(bundle: Bundle, kind: str) -> Iterator[list[tuple[tuple[int, ...], tuple[float, ...]]]]:
    with opened(bundle, kind) as session:
        answers = [session.generate(prompt, picture(n), params=params) for prompt, n, params in ASKED]
        yield [(answer.token_ids, answer.logprobs) for answer in answers]


def check_caches(session: Session) -> None:
    """Each slot holds as many positions as its list of tokens."""
    slots, decoder = session._pipeline.slots, session._pipeline._decoder
    for cache in slots._answers:
        assert cache.slot is not None and len(cache.ids) == decoder.length(cache.slot)


@pytest.mark.parametrize("priorities", [(0, 0, 0, 0), (0, 2, 1, 1)])
def test_tokens_are_those_of_answers_written_alone(
    bundle: Bundle, kind: str, expected: list[tuple[tuple[int, ...], tuple[float, ...]]], priorities: tuple[int, ...]
) -> None:
    with opened(bundle, kind, parallel=4, max_pending=20) as session:
        assert session.decoder_kind == kind
        chat = session.chat()
        for _ in range(2):  # slots are used again
            hold = Hold(session)
            streams = [
                session.stream(prompt, picture(n), params=params, priority=priority, weight=1.0 + n)
                for (prompt, n, params), priority in zip(ASKED, priorities, strict=True)
            ]
            turn = chat.stream(ASKED[2][0], picture(2), params=ASKED[2][2], weight=2.0)
            hold.go.set()
            for answer, (ids, logprobs) in zip([stream.answer() for stream in streams], expected, strict=True):
                assert answer.token_ids == ids
                np.testing.assert_allclose(answer.logprobs, logprobs, atol=0.02)
            assert turn.answer().token_ids == expected[2][0]
            check_caches(session)
            cache = chat._cache
            assert cache.slot is not None
            assert len(cache.ids) == session._pipeline._decoder.length(cache.slot)
            second = chat.generate("And now?", max_new_tokens=4)
            assert second.usage.cached_tokens > second.usage.prompt_tokens // 2
            chat.reset()


def test_answers_that_come_and_go_leave_a_long_one_as_it_is(
    bundle: Bundle, kind: str, expected: list[tuple[tuple[int, ...], tuple[float, ...]]]
) -> None:
    """The long one is sampled on the device, then on the host beside another, then on the device again."""
    with opened(bundle, kind, parallel=2) as session:
        brief = []

        def ask(delta: Delta) -> None:
            if delta.index in (2, 7):
                brief.append(session.stream(ASKED[3][0], picture(3), params=ASKED[3][2]))
            if delta.index == 10:
                brief.append(session.stream(ASKED[0][0], picture(1), params=GREEDY))
                brief[-1].cancel()

        prompt, number, params = ASKED[2]
        long = session.stream(prompt, picture(number), params=params, on_delta=ask)
        assert long.answer().token_ids == expected[2][0]
        assert [stream.answer().token_ids for stream in brief] == [expected[3][0], expected[3][0], ()]
        check_caches(session)


def test_a_lost_device_ends_all_answers(bundle: Bundle) -> None:
    with opened(bundle, "cuda", parallel=3) as session:
        decoder = session._pipeline._decoder
        assert isinstance(decoder, CudaDecoder)
        hold = Hold(session)
        streams = [session.stream("go", max_new_tokens=50) for _ in range(4)]
        engine = decoder._engine
        failing = FailingDevice(None, StickyError("illegal address"), "launch", fails_at=1)
        engine.run = lambda span: failing.count("launch")  # type: ignore[method-assign]
        hold.go.set()
        for stream in streams:
            with pytest.raises(DeviceLostError, match="illegal address"):
                stream.answer()
        with pytest.raises(DeviceLostError, match="illegal address"):
            session.generate("go")
