"""Known answers of the samplers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.arrays import DeviceArray
from kernels.cases.numbers import uniform
from kernels.kernel import Case
from kernels.launch.sample import SEEN_BITS, sample_filtered, sample_greedy
from kernels.reference import sample as reference
from kernels.state import DECODE_STATE, HEAD_PARTIAL, RING_ENTRY, SAMPLE_PARAMS
from kernels.workbench import Workbench

F32 = npt.NDArray[np.float32]
CAPACITY, STEP, POSITION = 4, 6, 40
TILE = 16
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0, "repetition_penalty": 1.75},
    {"temperature": 0.75, "seed": 2**64 - 1},
    {"temperature": 1.5, "top_k": 7, "seed": 1},
    {"temperature": 1.0, "top_p": 0.8, "seed": 2},
    {"temperature": 0.5, "min_p": 0.05, "seed": 3, "repetition_penalty": 1.25},
    {"temperature": 1.25, "top_k": 90, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 0.75, "seed": 4},
)


def cases() -> Iterator[Case]:
    """Greedy for one token and for several, with ties and damaged logits; every filter alone and all together."""
    for tokens, vocab in ((1, 37), (4, 100)):
        yield greedy_case(uniform(tokens, (tokens, vocab), -9.0, 9.0).round().astype(np.float32), "ties")
    damaged = uniform(3, (4, 64), -2.0, 2.0).astype(np.float32)
    damaged[0, 5], damaged[1, 63], damaged[2] = -np.nan, np.inf, -np.inf
    damaged[3, 16:32] = -np.inf  # a whole tile of tokens that cannot come
    yield greedy_case(damaged, "damaged")
    for number, setting in enumerate(SETTINGS):
        vocab = (515, 64, 1000, 20, 37, 1025)[number]
        yield filtered_case(uniform(number, (vocab,), -6.0, 6.0).astype(np.float32), setting)
    yield filtered_case(damaged[0], SETTINGS[1], "damaged ")


def head_partials(logits: F32) -> npt.NDArray[np.void]:
    """What head_argmax leaves for logits f32 [M, V]: HeadPartial [ceil(V / 16), M]."""
    tokens, vocab = logits.shape
    partials = np.zeros((-(-vocab // TILE), tokens), HEAD_PARTIAL)
    for tile in range(len(partials)):
        part = logits[:, tile * TILE : (tile + 1) * TILE].astype(np.float64)
        peak = part.max(axis=1)
        bad = ~(peak < np.inf)
        usable = np.isfinite(peak)  # the sum of a tile without a usable logit says nothing: NaN
        sums = np.exp(part - np.where(usable, peak, 0.0)[:, None], where=usable[:, None], out=np.zeros_like(part)).sum(
            1
        )
        partials[tile]["max"], partials[tile]["sum"] = peak, np.where(usable, sums, np.nan)
        partials[tile]["index"] = np.where(bad, -1, tile * TILE + part.argmax(axis=1))
    return partials


def greedy_case(logits: F32, name: str) -> Case:
    """Greedy choices for the M rows of logits."""
    partials = head_partials(logits)

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        shape = (*partials.shape, HEAD_PARTIAL.itemsize)
        arrays = _Arrays(bench)
        sample_greedy(
            bench.kernels, bench.stream, bench.upload(_bytes(partials).reshape(shape), "u8"), arrays.state, arrays.ring
        )
        return arrays.results(len(logits))

    return _case("sample_greedy", f"{name} {logits.shape}", run, reference.sample_greedy(logits))


def filtered_case(logits: F32, setting: Mapping[str, Any], name: str = "") -> Case:
    """A draw; every third token counts as seen."""
    seen = np.arange(len(logits)) % 3 == 0

    def run(bench: Workbench) -> Mapping[str, npt.NDArray[Any]]:
        arrays, scratch = _Arrays(bench), bench.empty(logits.shape, "u32")
        marks = bench.upload(packed(seen), "u32")
        params = bench.upload(parameters(**setting), "u8")
        sample_filtered(
            bench.kernels,
            bench.stream,
            bench.upload(logits, "f32"),
            params,
            marks,
            arrays.state,
            arrays.ring,
            scratch,
        )
        return arrays.results(1)

    draw = reference.sample_filtered(logits, seen, STEP, **setting)
    if draw.margin < reference.margin_bound(len(logits)):
        raise ValueError(f"{setting}: the draw lies {draw.margin} from a boundary, so that its token is not certain")
    return _case("sample_filtered", f"{name}{len(logits)} {dict(setting)}", run, [draw])


def parameters(**setting: Any) -> npt.NDArray[np.uint8]:
    """SampleParams as bytes; what is not named is off."""
    params = np.zeros(1, SAMPLE_PARAMS)
    for name, value in {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, **setting}.items():
        params[name] = value
    return _bytes(params)


def packed(seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """One bit per token, the lowest first."""
    whole = np.zeros(-(-len(seen) // SEEN_BITS) * SEEN_BITS, np.bool_)
    whole[: len(seen)] = seen
    return np.packbits(whole, bitorder="little").view("<u4")


class _Arrays:
    def __init__(self, bench: Workbench) -> None:
        state = np.zeros(1, DECODE_STATE)
        state["step"], state["pos"] = STEP, POSITION
        self.bench = bench
        self.state: DeviceArray = bench.upload(_bytes(state), "u8")
        self.ring: DeviceArray = bench.empty((CAPACITY, RING_ENTRY.itemsize), "u8")

    def results(self, count: int) -> dict[str, npt.NDArray[Any]]:
        """Return entries of the ring in the order of steps, and the state."""
        ring = self.bench.download(self.ring).reshape(-1).view(RING_ENTRY)
        entries = ring[(STEP + np.arange(count)) % CAPACITY]
        state = self.bench.download(self.state).view(DECODE_STATE)
        found = {name: entries[name] for name in ("token", "logprob", "sequence", "status")}
        return found | {"next": state["token"][:, 0], "step": state["step"], "pos": state["pos"]}


def _bytes(values: npt.NDArray[np.void]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _case(symbol: str, name: str, run: Any, draws: list[reference.Draw]) -> Case:
    """Tokens and the state are exact; the logarithm of the probability within `reference.logprob_bound`."""
    count = len(draws)
    tokens = np.array([draw.token for draw in draws])
    expected = {
        "token": tokens,
        "logprob": np.array([draw.logprob for draw in draws]),
        "sequence": STEP + 1 + np.arange(count),
        "status": np.where(np.maximum.accumulate(tokens < 0), 2, 0),
        "next": tokens[-1:],
        "step": np.array([STEP + count]),
        "pos": np.array([POSITION + count]),
    }
    return Case(symbol, symbol, name, run, expected, {"logprob": reference.logprob_bound(expected["logprob"])})
