"""Which outputs there are, what they load, and that all of them stuck at once cost the others nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from runtime.captiond.bus import Bus
from runtime.captiond.clock import Clock
from runtime.captiond.config.settings import (
    JsonlSettings,
    MqttSettings,
    OutputSettings,
    TerminalSettings,
    WebhookSettings,
)
from runtime.captiond.events import CaptionFinished, Event
from runtime.captiond.outputs import build
from runtime.captiond.outputs.output import Output
from tests.runtime.captiond.outputs.running import eventually, running
from tests.runtime.captiond.sample_events import finished

ROOT = Path(__file__).resolve().parents[4]


def test_the_settings_choose_the_outputs(tmp_path: Path) -> None:
    async def main() -> None:
        settings = OutputSettings(
            terminal=TerminalSettings(enabled=False),
            jsonl=JsonlSettings(path=str(tmp_path / "lines")),
            mqtt=MqttSettings(host="localhost"),
            webhooks=(WebhookSettings(name="one", url="https://a"), WebhookSettings(name="two", url="https://b")),
        )
        made = build(settings, "box", Bus(), Clock(), False, ())
        assert [one.name for one in made] == ["jsonl", "mqtt", "webhook-one", "webhook-two"]
        assert [one.name for one in build(OutputSettings(), "box", Bus(), Clock(), False, ())] == ["terminal"]

    asyncio.run(main())


def test_libraries_are_loaded_for_outputs_that_are_used_alone() -> None:
    script = (
        "import sys; from runtime.captiond.outputs import build;"
        "from runtime.captiond.bus import Bus; from runtime.captiond.clock import Clock;"
        "from runtime.captiond.config.settings import OutputSettings;"
        "build(OutputSettings(), 'box', Bus(), Clock(), False, ());"
        "print(sorted({'paho', 'aiohttp', 'numpy', 'cv2', 'ssl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['ssl']")


class Stuck(Output):
    """Takes one event and never another; may fail first."""

    def __init__(self, bus: Bus, fails: int = 0) -> None:
        super().__init__("stuck", bus, Clock(), (CaptionFinished,), capacity=4)
        self.fails = fails
        self.taken: list[Event] = []

    async def _work(self) -> None:
        async for event in self.subscription:
            if self.fails:
                self.fails -= 1
                raise ValueError("a bug")
            self.taken.append(event)
            await asyncio.Event().wait()


def test_a_stuck_output_is_ended_at_its_time_and_what_it_held_is_counted() -> None:
    async def main() -> None:
        bus = Bus()
        one = Stuck(bus)
        async with running(one, close_s=0.01) as task:
            for number in range(10):
                bus.publish(finished(number))
            await eventually(lambda: one.taken)
        assert task.cancelled()
        assert (one.state, one.subscription.waiting, one.dropped) == ("ended", 0, 9)
        await one.close(1)

    asyncio.run(main())


def test_an_output_may_run_again_after_it_failed() -> None:
    async def main() -> None:
        bus = Bus()
        one = Stuck(bus, fails=1)
        bus.publish(finished(1))
        bus.publish(finished(2))
        task = asyncio.ensure_future(one.run())
        await asyncio.wait({task})
        assert isinstance(task.exception(), ValueError)
        async with running(one, close_s=0.01):
            await eventually(lambda: one.taken == [finished(2)])

    asyncio.run(main())
