"""Hidden states between layers: bit for bit on disk, and read only when they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.quantization.journal import open_journal
from export.quantization.states import StateBatches, States
from models.awq import LayerBatch


def batch(hidden: torch.Tensor) -> LayerBatch:
    return LayerBatch(hidden, (hidden[..., :2], hidden[..., 2:4]))


def test_states_come_back_bit_for_bit_and_go_away(tmp_path: Path) -> None:
    wanted = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * 1e-30
    with open_journal(tmp_path / "out", {}, force=False) as journal:
        states = States(journal, 3, 2)
        assert len(states) == 2 and not states.has(1)
        states.write(1, wanted)
        assert states.has(1) and not States(journal, 4, 2).has(1)
        assert torch.equal(states.read(1), wanted)
        states.drop()
        assert not states.has(1)


def test_batches_are_some_of_the_states_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    with open_journal(tmp_path / "out", {}, force=False) as journal:
        states = States(journal, 0, 4)
        for index in range(4):
            states.write(index, torch.full((index + 1, 4), float(index)))
        real = States.read
        monkeypatch.setattr(States, "read", lambda self, index: (read.append(index), real(self, index))[1])
        batches = StateBatches(states, (0, 2, 3), batch)
        assert len(batches) == 3 and read == []
        assert [item.hidden.shape for item in batches] == [(1, 1, 4), (1, 3, 4), (1, 4, 4)]
        assert read == [0, 2, 3]
        assert [float(item.hidden[0, 0, 0]) for item in batches[1:]] == [2.0, 3.0]
        assert torch.equal(batches[-1].position_embeddings[1], torch.full((1, 4, 2), 3.0))
        with pytest.raises(IndexError):
            batches[3]
