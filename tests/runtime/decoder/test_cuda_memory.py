"""Memory of the CUDA decoder: planned in pieces, refused with numbers, and given back whatever fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from kernels.driver.opening import open_device
from kernels.errors import DeviceError, ImageError, OutOfMemoryError, StickyError
from kernels.launch.attention import partials_shape, split_positions
from runtime.budget import memory_budget
from runtime.decoder.cuda import CudaDecoder, CudaDecoderFiles, plan
from runtime.decoder.cuda.allocation import GRAPHS_BYTES
from runtime.decoder.options import CudaOptions
from runtime.errors import EngineError, InputError, MemoryLimitError
from runtime.fusion import PlacedIds
from runtime.sampling import Sampler
from runtime.types import GenerationParams
from tests.runtime.decoder.cuda_bundles import (
    NVILA_8B,
    SMALL,
    FailingDevice,
    demo_bundle,
    needs_compiler,
    opened,
    small_files,
)

MIB = 1 << 20
LENGTH = 40


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> CudaDecoderFiles:
    needs_compiler()
    return small_files(tmp_path_factory.mktemp("decoder"), max_seq_len=LENGTH)


@pytest.fixture(scope="module")
def large(files: CudaDecoderFiles) -> CudaDecoderFiles:
    """The shape of NVILA-8B; its files are not looked at."""
    return replace(files, **NVILA_8B)


def all_items(files: CudaDecoderFiles, *, kv: str = "f16", form: str = "f16", slots: int = 1) -> list[plan.Item]:
    """What a decoder without biases allocates."""
    splits = -(-files.max_seq_len // split_positions(files.kv_heads))
    partials = int(np.prod(partials_shape(8, files.heads, files.head_dim, splits)))
    return [
        *plan.weight_items(files, ()),
        *plan.head_items(files),
        *plan.activation_items(files, kv, partials),  # type: ignore[arg-type]
        *plan.sampling_items(files),
        *plan.table_items(files, form),  # type: ignore[arg-type]
        *plan.cache_items(files, kv, slots),  # type: ignore[arg-type]
    ]


# --- plan -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["f16", "i8"])
def test_pieces_hold_every_item_once_and_none_exceeds_the_limit(large: CudaDecoderFiles, form: str) -> None:
    items = all_items(large, form=form)
    found = list(plan.pieces(items))
    assert [item for piece in found for item in piece] == items
    sizes = [sum(item.room for item in piece) for piece in found]
    assert max(sizes) <= plan.MAX_PIECE_BYTES == 150_000_000
    assert sum(sizes) == sum(plan.purpose_bytes(items).values())
    assert all(len({item.purpose for item in piece}) == 1 for piece in found)
    assert len(found) < 60  # and none is needlessly small


def test_parts_of_head_and_table_follow_each_other_in_whole_tiles(large: CudaDecoderFiles) -> None:
    for rows in (plan.head_rows(large), plan.table_rows(large, "f16")):
        assert len(rows) > 1
        assert [part.first for part in rows] == [sum(p.count for p in rows[:i]) for i in range(len(rows))]
        assert sum(part.count for part in rows) == large.vocab
    assert all(part.first % 16 == 0 for part in plan.head_rows(large))


def test_bytes_are_those_of_the_arrays(large: CudaDecoderFiles) -> None:
    sizes = plan.purpose_bytes(all_items(large))
    assert sizes["KV cache"] == pytest.approx(2 * 28 * 4 * 128 * 8192 * 2, rel=1e-5)
    assert sizes["token table"] == pytest.approx(2 * 3584 * 151651, rel=1e-5)
    bits = 4 + 16 / 128 + 4 / 128  # of a weight with its share of scale and zero point
    assert sizes["LM head"] == pytest.approx(3584 * 151651 * bits / 8, rel=1e-4)
    narrow = plan.purpose_bytes(all_items(large, kv="i8", form="i8", slots=2))
    assert narrow["KV cache"] == pytest.approx(2 * 2 * 28 * 4 * 130 * 8192, rel=1e-5)
    assert narrow["token table"] == pytest.approx((3584 + 4) * 151651, rel=1e-5)


def test_an_array_that_no_piece_holds_is_refused_by_name(large: CudaDecoderFiles) -> None:
    wide = replace(large, kv_heads=28, max_seq_len=32768)
    with pytest.raises(MemoryLimitError, match=r"kv\.0\.k\.0 takes 235 MB in one piece, the limit is 150") as caught:
        list(plan.pieces(plan.cache_items(wide, "f16", 1)))
    assert "--max-seq-len" in str(caught.value.hint)


def test_a_cache_that_no_piece_holds_is_refused_before_anything_is_allocated(
    files: CudaDecoderFiles, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MAX_PIECE_BYTES", 2 * LENGTH * 64)  # half of a slot's keys in one layer
    counted = FailingDevice(device, EngineError("never"), "alloc", "create_stream")
    with pytest.raises(MemoryLimitError, match="in one piece"):
        CudaDecoder(files, CudaOptions(), counted, owned=False)
    assert counted.calls == 0


@pytest.mark.parametrize(("kv", "embeddings"), [("f16", "f16"), ("i8", "i8")])
@pytest.mark.parametrize("name", ["demo-llava", "demo-nvila"])
def test_budget_covers_what_is_allocated_and_little_more(tmp_path: Path, name: str, kv: str, embeddings: str) -> None:
    from runtime.decoder import _cuda_files

    bundle = demo_bundle(name, tmp_path / "bundle")
    budget = memory_budget(bundle.manifest, kind="cuda", slots=3, kv=kv, embeddings=embeddings)
    sizes = plan.purpose_bytes(all_items(_cuda_files(bundle), kv=kv, form=embeddings, slots=3))
    weights = sizes["weights"] + sizes["LM head"] + sizes["token table"]
    assert weights == pytest.approx(budget.decoder_bytes, rel=0.05)
    assert sizes["KV cache"] == pytest.approx(budget.kv_cache_bytes, rel=0.01)
    buffers = sizes["activations"] + sizes["sampling"]
    assert buffers * 0.98 <= budget.device_buffer_bytes - 48 * MIB <= buffers * 1.1
    assert budget.beside_device().total_bytes + budget.decoder_bytes < budget.total_bytes


# --- allocation -----------------------------------------------------------------------------------------------------


class Fuller(FailingDevice):
    """A device that says how much it has free, and counts what is taken of it."""

    def __init__(self, device: Any, free: int) -> None:
        super().__init__(device, EngineError("never"), "alloc")
        self.free = free

    def memory_info(self) -> tuple[int, int]:
        return self.free, 8 << 30


@pytest.fixture
def device() -> Iterator[Any]:
    device = open_device("emulator")
    yield device
    device.close()


def needed_bytes(files: CudaDecoderFiles, form: str) -> int:
    return sum(plan.purpose_bytes(all_items(files, form=form)).values()) + GRAPHS_BYTES


def test_what_does_not_fit_is_refused_with_numbers_before_anything_is_allocated(
    files: CudaDecoderFiles, device: Any
) -> None:
    needed = needed_bytes(files, "f16")
    fuller = Fuller(device, needed - 1)
    with pytest.raises(MemoryLimitError, match="takes 16 MiB of device memory, 16 of 8192 MiB are free; most of it is"):
        CudaDecoder(files, CudaOptions(embeddings="f16"), fuller, owned=False)
    assert fuller.calls == 0
    assert not any(device.live().values())
    fuller.free = needed
    with opened(files, device=fuller, embeddings="f16") as decoder:
        assert sum(use.bytes for use in decoder.memory() if use.place == "device") == needed


def test_auto_takes_the_int8_table_when_the_wide_one_does_not_fit(files: CudaDecoderFiles, device: Any) -> None:
    forms = []
    for free in (needed_bytes(files, "f16"), needed_bytes(files, "f16") - 1, needed_bytes(files, "i8")):
        with opened(files, device=Fuller(device, free), embeddings="auto") as decoder:
            forms.append(decoder._engine.table_form)
    assert forms == ["f16", "i8", "i8"]
    with pytest.raises(MemoryLimitError):
        CudaDecoder(files, CudaOptions(), Fuller(device, needed_bytes(files, "i8") - 1), owned=False)


@pytest.mark.parametrize(
    ("name", "error", "expected"),
    [
        ("alloc", OutOfMemoryError("no memory", requested=77 << 20), MemoryLimitError),
        ("pinned", OutOfMemoryError("no memory", requested=77 << 20), MemoryLimitError),
        ("create_stream", DeviceError("no stream"), EngineError),
        ("create_event", DeviceError("no event"), EngineError),
        ("copy_in", DeviceError("no copy"), EngineError),
    ],
)
def test_a_failure_at_every_call_of_opening_leaves_nothing_behind(
    files: CudaDecoderFiles, device: Any, name: str, error: Exception, expected: type[Exception]
) -> None:
    counted = FailingDevice(device, error, name)
    with opened(files, device=counted, slots=2, kv="i8", embeddings="i8"):
        calls = counted.calls
    assert calls >= 1
    some = range(1, calls + 1) if calls < 30 else [*range(1, 10), *range(10, calls, 7), calls]
    for fails_at in some:
        failing = FailingDevice(device, error, name, fails_at=fails_at)
        with pytest.raises(expected, match=str(error)):
            CudaDecoder(files, CudaOptions(kv="i8", embeddings="i8"), failing, slots=2, owned=False)
        assert failing.calls == fails_at
        assert not any(device.live().values()), (name, fails_at, device.live())


def test_out_of_memory_says_how_much_was_wanted_and_what_to_do(files: CudaDecoderFiles, device: Any) -> None:
    error = OutOfMemoryError("cuMemAlloc: out of memory", requested=77 << 20)
    with pytest.raises(MemoryLimitError, match=r"cuMemAlloc: out of memory \(77\.0 MiB wanted\)") as caught:
        CudaDecoder(files, CudaOptions(), FailingDevice(device, error, "alloc", fails_at=1), owned=False)
    assert "kv='i8'" in str(caught.value.hint)


def test_a_failure_at_every_launch_leaves_the_slot_and_nothing_behind(files: CudaDecoderFiles, device: Any) -> None:
    """A prompt with a picture, a step, and a step that samples: each launch fails once, then all is as before."""
    error = DeviceError("launch refused")
    failing = FailingDevice(device, error, "launch")
    placed = PlacedIds(np.array([*range(12), -1], np.int32), np.ones((1, SMALL.hidden), np.float32))
    draws = Sampler(GenerationParams(temperature=1.0, seed=1), SMALL.vocab).draws()
    with opened(files, device=failing, kv="i8", graphs=False) as decoder:
        runs = {
            "prefill": lambda: decoder.prefill_ids(0, placed),
            "decode": lambda: decoder.decode(0, [4, 5]),
            "sample": lambda: next(decoder.sampled(0, 4, draws)),
        }
        decoder.prefill_ids(0, placed)
        for run in runs.values():
            failing.calls, failing.fails_at = 0, 0
            expected = run()
            launches = failing.calls
            decoder.truncate(0, 13)
            for fails_at in range(1, launches + 1, 3):
                failing.calls, failing.fails_at = 0, fails_at
                with pytest.raises(EngineError, match="launch refused"):
                    run()
                assert decoder.length(0) == 13
            failing.fails_at = 0
            np.testing.assert_array_equal(run(), expected)
            decoder.truncate(0, 13)


def test_a_capture_that_fails_leaves_the_stream_and_is_tried_again(files: CudaDecoderFiles, device: Any) -> None:
    failing = FailingDevice(device, DeviceError("launch refused"), "launch")
    with opened(files, device=failing) as decoder:
        expected = decoder.decode(0, [4])
        decoder.truncate(0, 0)
        failing.fails_at = failing.calls + 3
        with pytest.raises(EngineError, match="launch refused"):
            decoder.decode(0, [4])
        assert (decoder.length(0), len(decoder._engine._graphs)) == (0, 0)
        for _ in range(2):
            np.testing.assert_array_equal(decoder.decode(0, [4]), expected)
            decoder.truncate(0, 0)
        assert len(decoder._engine._graphs) == 1


def test_a_lost_context_is_said_and_the_decoder_still_closes(files: CudaDecoderFiles) -> None:
    device = open_device("emulator")
    failing = FailingDevice(device, StickyError("illegal address"), "launch")
    with opened(files, device=failing) as decoder:
        failing.fails_at = 1
        with pytest.raises(EngineError, match="illegal address") as caught:
            decoder.decode(0, [1])
        assert "start the process again" in str(caught.value.hint)
    device.close()


def test_a_context_that_is_really_lost_closes_without_another_error(
    files: CudaDecoderFiles, caplog: pytest.LogCaptureFixture
) -> None:
    device = open_device("emulator")
    with opened(files, device=device) as decoder:
        device.handles.lost = StickyError("illegal address")  # type: ignore[attr-defined]
        with pytest.raises(EngineError, match="context is lost"):
            decoder.decode(0, [1])
        assert decoder.length(0) == 0
    assert "context is lost" in caplog.text
    device.close()


def test_more_slots_than_fit_are_refused_and_fewer_can_be_opened_then(files: CudaDecoderFiles, device: Any) -> None:
    failing = FailingDevice(device, OutOfMemoryError("no memory", requested=1), "alloc")
    with opened(files, device=failing) as decoder:
        failing.fails_at = failing.calls + 1
        with pytest.raises(MemoryLimitError):
            decoder.open(5)
        with pytest.raises(InputError, match="not one of the 0 slots"):
            decoder.decode(0, [1])
        decoder.open(2)
        assert np.isfinite(decoder.decode(1, [1])).all()


def test_code_for_another_device_is_refused_with_the_command_that_makes_it(
    files: CudaDecoderFiles, device: Any
) -> None:
    failing = FailingDevice(device, ImageError("no kernel image for sm_87"), "load_module", fails_at=1)
    with opened(files, device=failing) as decoder:
        with pytest.raises(EngineError, match="no kernel image for sm_87") as caught:
            decoder.decode(0, [1])
        assert "python -m kernels.build" in str(caught.value.hint)
        assert decoder.length(0) == 0


def test_an_owned_device_is_closed_with_the_decoder_and_when_opening_fails(files: CudaDecoderFiles) -> None:
    device = open_device("emulator")
    CudaDecoder(files, CudaOptions(), device).close()
    with pytest.raises(DeviceError, match="after it was closed"):
        device.create_stream()
    device = open_device("emulator")
    with pytest.raises(Exception, match="slots"):
        CudaDecoder(files, CudaOptions(), device, slots=0)
    with pytest.raises(DeviceError, match="after it was closed"):
        device.create_stream()
