"""The benchmark: one table and one JSON line of the same numbers, measured on the loaded weights."""

from __future__ import annotations

import json
import logging
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models import nvila_bench
from models.media import Video
from models.nvila_rounds import Rounds
from tests.models.tiny import picture


@pytest.mark.parametrize("quant", [False, True])
def test_behaviour_38_benchmark_prints_one_table_and_logs_the_same_numbers(
    quant: bool, loaded: Any, capsys: Any, caplog: Any
) -> None:
    model = loaded("nvila")
    prompt = [picture(60, 40), "q"]
    with caplog.at_level(logging.INFO, logger="models.nvila_bench"):
        assert model.benchmark(prompt, quant) is None
    rows = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    said = [json.loads(record.message) for record in caplog.records if record.name == "models.nvila_bench"]
    assert len(said) == 1
    result = said[0]
    ids, media, config = model.prepare_prompt(prompt)
    embeds, _, _ = model._embed(ids, media, config, None, None)
    assert rows[:4] == [
        ["image size px", "60x40"],
        ["tiles", str(len(media["image"]))],
        ["prompt tokens", str(embeds.shape[1])],
        ["median", "min", "max", "n"],
    ]
    assert [row[0] for row in rows[4:]] == ["vision_ms", "prefill_ms", "decode_tokens_per_s"]
    for name, *numbers, count in rows[4:]:
        assert numbers == [f"{result[name][key]:.2f}" for key in ("median", "min", "max")]
        assert count == str(result["n"]) == str(nvila_bench.ROUNDS)
        assert 0 < result[name]["min"] <= result[name]["median"] <= result[name]["max"]
    assert (result["quant_llm"], result["images_px"], result["prompt_tokens"]) == (quant, [[60, 40]], embeds.shape[1])


@pytest.mark.parametrize("quant", [False, True])
def test_behaviour_38_the_loaded_weights_are_timed_with_the_device_synchronised(
    quant: bool, loaded: Any, monkeypatch: Any
) -> None:
    model = loaded("nvila")
    events: list[str] = []
    monkeypatch.setattr(nvila_bench, "_synchronize", lambda _: events.append("sync"))
    clock = iter(range(10_000))
    monkeypatch.setattr(nvila_bench.time, "perf_counter", lambda: (events.append("clock"), float(next(clock)))[1])
    ran: list[bool] = []
    decoder = model.decoder
    monkeypatch.setattr(model, "decoder", lambda quant_llm: (ran.append(quant_llm), decoder(quant_llm))[1])
    result = nvila_bench.measure(model, [picture(60, 40), "q"], quant, rounds=2, steps=3)
    assert events == ["sync", "clock", "sync", "clock"] * 6  # before and behind each of three works, twice
    assert set(ran) == {quant}
    # the clock moves by one second at each look
    assert result["vision_ms"] == result["prefill_ms"] == {"median": 1000.0, "min": 1000.0, "max": 1000.0}
    assert result["decode_tokens_per_s"]["median"] == 3.0


def test_behaviour_38_text_videos_and_a_conversation_under_way(loaded: Any) -> None:
    model = loaded("nvila")
    rounds = Rounds(model, quant_llm=False)
    rounds.ask("one?", 2)
    held = model._stream._cache.get_seq_length()
    text = nvila_bench.measure(model, "hello", False, rounds=1, steps=1)
    assert (text["images_px"], text["tile_px"], text["tiles"]) == ([], None, 0)
    video = nvila_bench.measure(model, [Video([picture(30, 20, i) for i in range(3)]), "q"], False, rounds=1, steps=1)
    assert (video["images_px"], video["tiles"]) == ([[30, 20]], 4)
    assert model._stream._cache.get_seq_length() == held
    rounds.ask("two?", 2)


def test_behaviour_38_spread_is_the_least_and_the_greatest() -> None:
    assert nvila_bench._summary([3.0, 1.0, 2.0, 9.0]) == {"median": 2.5, "min": 1.0, "max": 9.0}


def test_behaviour_38_a_gpu_is_waited_for(monkeypatch: Any) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    for device in (torch.device("cuda", 1), torch.device("cpu")):
        nvila_bench._synchronize(SimpleNamespace(device=device))
    assert waited == [torch.device("cuda", 1)]
