"""The real engine's process on the demo model: its answers, what it loads, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime import GenerationParams, ImagePart, Message, Session
from runtime.captiond.asks import Ask, AskMessage, ConstraintSpec, NewestFrame, SharedImage
from runtime.captiond.capture.ring import Ring
from runtime.captiond.config.settings import EngineSettings
from runtime.captiond.engine.asked import Asked
from runtime.captiond.engine.child import OOM_SCORE
from runtime.errors import InputError, PromptError
from runtime.sources import open_source
from tests.runtime.captiond.engine.engines import chat, engine, eventually

ROOT = Path(__file__).resolve().parents[4]
DEMO = ROOT / "runtime" / "demo"
BUNDLE = str(DEMO / "demo-llava")
QUESTION = "Describe the image."


def demo_frames(count: int) -> list[np.ndarray]:
    """The first frame of each second of the demo video."""
    with open_source(DEMO / "demo.avi", every_frame=True) as source:
        frames = [frame.rgb for _, frame in zip(range(10 * count), source, strict=False)]
    return frames[::10]


async def written(asked: Asked) -> str:
    """The deltas of an answer."""
    return "".join([delta.text async for delta in asked])


def show(ring: Ring, rgb: np.ndarray, seq: int) -> None:
    height, width = rgb.shape[:2]
    assert ring.write(rgb.tobytes(), width, height, seq, 10**9, "exposure")


def test_captions_are_those_of_a_session_also_several_at_once_and_beside_a_chat() -> None:
    frames = demo_frames(3)
    params = GenerationParams(max_new_tokens=40)
    conversation = [Message("user", (ImagePart(0), QUESTION))]
    with Session.open(BUNDLE, chats=0) as session:
        expected = [session.generate(conversation, [rgb], params=params).text for rgb in frames]
        said = session.generate("Hello?", max_new_tokens=20).text
    assert len(set(expected)) > 1, "frames that look alike prove nothing"

    async def main() -> None:
        rings = [Ring.create(rgb.nbytes) for rgb in frames]
        async with engine(None, captions=3, settings=EngineSettings(bundle=BUNDLE, chats=1)) as made:
            for index, (ring, rgb) in enumerate(zip(rings, frames, strict=True)):
                made.client.attach_source(f"source-{index}", ring)
                show(ring, rgb, 7)
            asks = [
                Ask("caption", (AskMessage("user", (0, QUESTION)),), (NewestFrame(f"source-{index}", 6),),
                    {"max_new_tokens": 40}, priority=10)
                for index in range(3)
            ]  # fmt: skip
            asked = [made.client.ask(ask) for ask in asks]
            talked = made.client.ask(chat("Hello?", max_new_tokens=20))
            texts = [await written(one) for one in asked]
            results = [await one.result() for one in asked]
            assert texts == [result.text for result in results] == expected
            assert (await talked.result()).text == said
            assert [result.frame.seq for result in results if result.frame is not None] == [7, 7, 7]
            assert all(result.image_tokens > 0 and result.timings_ms["ttft_ms"] > 0 for result in results)
            assert made.client.facts is not None and made.client.model == "demo-llava"
            assert made.client.facts.memory_bytes["weights"] > 0
            for index, ring in enumerate(rings):
                made.client.detach_source(f"source-{index}")
                ring.close()

    asyncio.run(main())


def test_answers_keep_to_their_constraint_and_tokens_come_with_their_chances() -> None:
    async def main() -> None:
        async with engine(None, settings=EngineSettings(bundle=BUNDLE, chats=1)) as made:
            words = (AskMessage("user", ("Is there a person?",)),)
            choice = ConstraintSpec("choice", choices=("yes", "no"))
            asked = made.client.ask(Ask("chat", words, params={"top_logprobs": 3}, constraint=choice))
            deltas = [delta async for delta in asked]
            assert (await asked.result()).text in ("yes", "no")
            assert b"".join(delta.token.bytes for delta in deltas if delta.token is not None).decode().strip() in (
                "yes",
                "no",
            )
            assert all(len(delta.top) == 3 for delta in deltas)
            schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
            spec = ConstraintSpec("json_schema", schema={**schema, "additionalProperties": False})
            answer = await made.client.ask(Ask("chat", words, constraint=spec)).result()
            assert json.loads(answer.text)["n"] in (1, 2)

    asyncio.run(main())


def test_refusals_cross_with_their_type() -> None:
    async def main() -> None:
        async with engine(None, settings=EngineSettings(bundle=BUNDLE, chats=1)) as made:
            with pytest.raises(PromptError, match="context"):
                await made.client.ask(chat("word " * 5000)).result()
            file = os.memfd_create("image")
            os.truncate(file, 3 * 64 * 48)
            words = (AskMessage("user", (0, "word " * 5000)),)
            with pytest.raises(PromptError, match="context"):
                await made.client.ask(Ask("chat", words, (SharedImage(file, 64, 48),))).result()
            os.close(file)
            with pytest.raises(InputError, match="temperature"):
                await made.client.ask(chat(temperature=-1.0)).result()
            with pytest.raises(InputError, match="unknown"):
                await made.client.ask(chat(warmth=1.0)).result()
            bad = ConstraintSpec("json_schema", schema={"type": "object", "unevaluatedProperties": False})
            with pytest.raises(InputError, match="unevaluatedProperties"):
                await made.client.ask(Ask("chat", (AskMessage("user", ("?",)),), constraint=bad)).result()
            assert made.states == ["ready"]

    asyncio.run(main())


def test_cancelled_answer_ends_and_its_place_is_free() -> None:
    async def main() -> None:
        async with engine(None, settings=EngineSettings(bundle=BUNDLE, chats=1)) as made:
            asked = made.client.ask(chat(max_new_tokens=400, temperature=2.0, seed=1))
            await asked.__anext__()
            asked.cancel()
            result = await asked.result()
            assert result.finish_reason in ("cancelled", "stop")
            assert (await made.client.ask(chat(max_new_tokens=1)).result()).completion_tokens <= 1

    asyncio.run(main())


def test_process_is_the_first_of_the_daemon_to_go_and_names_nothing_on_its_command_line() -> None:
    async def main() -> None:
        async with engine(None, settings=EngineSettings(bundle=BUNDLE)) as made:
            proc = Path(f"/proc/{made.client.pid}")
            assert int((proc / "oom_score_adj").read_text()) >= OOM_SCORE > 0
            words = (proc / "cmdline").read_bytes().decode().split("\0")
            assert words[1:-2] == ["-m", "runtime.captiond.engine.child", "--socket"]
            assert words[-2].isdigit()

    asyncio.run(main())


def test_started_by_hand_it_says_who_starts_it() -> None:
    for words in ([], ["--socket"], ["--socket", "x"], ["--help"]):
        command = [sys.executable, "-m", "runtime.captiond.engine.child", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert "started by the daemon" in done.stderr


LOADED = """
import sys
import numpy as np
from runtime.captiond.asks import Ask, AskMessage, SharedImage
from runtime.captiond.config.settings import EngineSettings
from runtime.captiond.engine import child
from runtime.captiond.engine.server import Pixels
model = child._load(EngineSettings(bundle=sys.argv[1]), 1)
image = Pixels(memoryview(bytes(3 * 64 * 48)), 64, 48)
import asyncio
async def main():
    return await model.begin(Ask("caption", (AskMessage("user", (0, "?")),)), [image]).result()
asyncio.run(main())
print(sorted(name for name in sys.modules if "." not in name))
"""


def test_engine_loads_no_library_of_pictures_or_of_the_network() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, BUNDLE], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stdout.replace("'", '"')))
    assert {"numpy", "tokenizers", "onnxruntime"} <= modules
    assert modules.isdisjoint({"cv2", "PIL", "aiohttp", "paho", "prometheus_client", "torch", "transformers"})
    assert modules.isdisjoint({"llguidance", "onnx", "jinja2"})


CLIENT = """
import sys
from runtime.captiond.engine import client, messages
from runtime.captiond import captioning
print(sorted(name for name in sys.modules))
"""


def test_client_and_captioner_need_no_numpy() -> None:
    done = subprocess.run([sys.executable, "-c", CLIENT], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stdout.replace("'", '"')))
    assert "runtime.captiond.captioning.captioner" in modules
    assert modules.isdisjoint({"numpy", "cv2", "PIL", "onnxruntime", "tokenizers", "runtime.session", "runtime.types"})


DAEMON = """
import asyncio, sys
from runtime.captiond.clock import Clock
from runtime.captiond.config.settings import EngineSettings
from runtime.captiond.engine.client import EngineClient
async def main():
    client = EngineClient(EngineSettings(bundle=sys.argv[1]), 1, lambda event: None, Clock())
    task = asyncio.create_task(client.run())
    await client.wait_answering()
    print(client.pid, flush=True)
    await task
asyncio.run(main())
"""


def test_engine_ends_with_its_daemon() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON, BUNDLE], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        state = Path(f"/proc/{pid}/stat")
        assert state.exists()
        os.kill(pid, signal.SIGSTOP)  # also when it does nothing any more
        daemon.kill()

        async def gone() -> None:
            await eventually(lambda: not state.exists() or state.read_text().split()[2] == "Z")

        asyncio.run(gone())
