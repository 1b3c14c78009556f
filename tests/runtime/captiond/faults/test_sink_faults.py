"""Every way in which a sink fails: the others get every caption meanwhile, and it does again when it is well."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.runtime.captiond.faults.sink_faults import KINDS, Outcome

GROUPS = {
    "broker": [kind for kind in KINDS if kind.startswith("broker")],
    "others": [kind for kind in KINDS if not kind.startswith("broker")],
}


async def side_by_side(kinds: list[str], folder: Path) -> dict[str, Outcome | BaseException]:
    """Each kind with a sink, a bus and a folder of its own."""

    async def one(kind: str) -> Outcome:
        (folder / kind).mkdir()
        return await KINDS[kind](folder / kind, random.Random(5))

    return dict(zip(kinds, await asyncio.gather(*map(one, kinds), return_exceptions=True), strict=True))


@pytest.mark.parametrize("group", GROUPS)
def test_a_sink_that_fails_costs_nobody_else_and_comes_back(group: str, tmp_path: Path) -> None:
    outcomes = asyncio.run(side_by_side(GROUPS[group], tmp_path))
    skipped = {kind: found for kind, found in outcomes.items() if isinstance(found, pytest.skip.Exception)}
    for kind, found in outcomes.items():
        if kind not in skipped:
            assert isinstance(found, Outcome), (kind, found)
            assert found.missed <= 1, (kind, found)  # the one that was published last and not read yet
            assert found.published > 20, (kind, found)
    if skipped:
        pytest.skip("; ".join(f"{kind} {reason}" for kind, reason in skipped.items()))
