"""Video files: order, pace, truncation, sampling. The clips are made here; frame n is gray of brightness 8 n."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import InputError, SourceError
from runtime.sources import open_source, open_unbuffered, sample_video
from runtime.sources.containers import container_of, missing_bytes
from runtime.sources.opencv import Capture
from runtime.sources.source import Clock
from runtime.sources.video import VideoSource

cv2 = pytest.importorskip("cv2")

FRAMES = 30
CODINGS = {".avi": "MJPG", ".mp4": "mp4v", ".mkv": "mp4v"}


class FakeClock(Clock):
    """Time that passes only by waiting."""

    t_ns = 0

    def now_ns(self) -> int:
        return self.t_ns

    def wait_until(self, t_ns: int, stop: threading.Event) -> None:
        self.t_ns = max(self.t_ns, t_ns)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    for suffix, coding in CODINGS.items():
        writer = cv2.VideoWriter(str(folder / f"clip{suffix}"), cv2.VideoWriter_fourcc(*coding), 10, (64, 48))
        for number in range(FRAMES):
            bgr = np.full((48, 64, 3), number * 8, np.uint8)
            bgr[:8, :8] = (255, 0, 0)  # a blue corner
            writer.write(bgr)
        writer.release()
    return {suffix: folder / f"clip{suffix}" for suffix in CODINGS}


def number_of(rgb: np.ndarray) -> int:
    return round(float(rgb[20:, 20:].mean()) / 8)


def cut(path: Path, share: float, to: Path) -> Path:
    data = path.read_bytes()
    to.write_bytes(data[: int(len(data) * share)])
    return to


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("suffix", CODINGS)
def test_every_frame_comes_once_in_order_as_rgb(clips: dict[str, Path], suffix: str) -> None:
    with open_source(clips[suffix], every_frame=True) as source:
        frames = list(source)
    assert [frame.seq for frame in frames] == list(range(FRAMES))
    assert [number_of(frame.rgb) for frame in frames] == list(range(FRAMES))
    red, _, blue = frames[0].rgb[3, 3]
    assert blue > 200 and red < 60
    assert frames[0].rgb.shape == (48, 64, 3) and frames[0].source == str(clips[suffix]) and not source.live


def test_without_every_frame_a_video_plays_at_its_own_speed(clips: dict[str, Path]) -> None:
    source = VideoSource(clips[".mp4"], "clip", every_frame=False, clock=FakeClock())
    assert source.live
    times = [frame.t_capture_ns for frame in source]
    assert times == [number * 100_000_000 for number in range(FRAMES)]


def test_open_source_puts_a_mailbox_around_a_playing_video(clips: dict[str, Path]) -> None:
    with open_source(clips[".mp4"], clock=FakeClock()) as source:
        seqs = [frame.seq for frame in source]
        dropped = source.dropped
    assert seqs == sorted(set(seqs)) and seqs[-1] == FRAMES - 1  # the last frame is never lost
    assert len(seqs) + dropped == FRAMES


def test_a_loop_goes_on_counting(clips: dict[str, Path]) -> None:
    with open_source(clips[".avi"], every_frame=True, loop=True) as source:
        frames = [next(source) for _ in range(FRAMES * 2 + 3)]
    assert [frame.seq for frame in frames] == list(range(FRAMES * 2 + 3))
    assert number_of(frames[FRAMES + 2].rgb) == 2


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_a_video_that_breaks_off_gives_its_frames_and_then_an_error(
    clips: dict[str, Path], suffix: str, tmp_path: Path
) -> None:
    source = open_source(cut(clips[suffix], 0.6, tmp_path / f"cut{suffix}"), every_frame=True)
    seen: list[int] = []
    with pytest.raises(SourceError, match=r"breaks off after \d+ frames, [\d,]+ bytes are missing"):
        seen.extend(number_of(frame.rgb) for frame in source)
    assert FRAMES // 4 < len(seen) < FRAMES
    assert seen[:-1] == list(range(len(seen) - 1))  # of the last one, the decoder shows what is there
    assert next(source, None) is None
    source.close()


def test_a_cut_mp4_cannot_be_opened(clips: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be opened"):
        open_source(cut(clips[".mp4"], 0.6, tmp_path / "cut.mp4"))


def test_a_video_without_frames_is_refused_when_it_is_opened(clips: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"without a readable frame|cannot be opened"):
        open_source(cut(clips[".mkv"], 0.02, tmp_path / "cut.mkv"))


def test_a_short_video_of_a_container_that_does_not_tell_ends_with_a_warning(
    clips: dict[str, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = VideoSource(clips[".avi"], "clip")
    source._capture.declared_frames = 99
    with caplog.at_level(logging.WARNING):
        assert len(list(source)) == FRAMES
    assert "ended after 30 frames, its header says 99" in caplog.text


def test_a_frame_that_cannot_be_decoded_is_left_out_and_keeps_its_number(
    clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {3, 4})
    with open_source(clips[".avi"], every_frame=True) as source:
        assert [frame.seq for frame in source][:5] == [0, 1, 2, 5, 6]


def test_large_frames_are_refused_before_the_first_is_decoded(clips: dict[str, Path]) -> None:
    with pytest.raises(SourceError, match="frames of 64x48 px, the limit is 3,071 pixels"):
        open_unbuffered(clips[".avi"], max_pixels=64 * 48 - 1)


def test_the_number_of_decoding_threads_changes_no_frame(clips: dict[str, Path]) -> None:
    with open_source(clips[".avi"], every_frame=True) as usual:
        with open_unbuffered(clips[".avi"], every_frame=True, threads=1) as lean:
            pairs = [(first.rgb, second.rgb) for first, second in zip(usual, lean, strict=True)]
    assert pairs and all(np.array_equal(first, second) for first, second in pairs)


def test_opencv_is_named_when_it_is_missing(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SourceError, match=r"jetson-vlm\[video\]"):
        open_source(clips[".avi"])


def test_closing_in_the_middle_gives_everything_back(clips: dict[str, Path]) -> None:
    def half_a_video(every_frame: bool) -> None:
        source = open_source(clips[".avi"], every_frame=every_frame, clock=FakeClock())
        next(iter(source))
        source.close()
        assert next(source, None) is None

    half_a_video(True)
    files, threads = open_fds(), threading.active_count()
    for turn in range(10):
        half_a_video(turn % 2 == 0)
    assert open_fds() == files and threading.active_count() == threads


def test_a_video_that_is_read_to_its_end_gives_its_file_back_without_close(clips: dict[str, Path]) -> None:
    files = open_fds()
    source = open_source(clips[".avi"], every_frame=True)
    assert sum(1 for _ in source) == FRAMES
    assert open_fds() == files


# sample_video


def spoil(monkeypatch: pytest.MonkeyPatch, numbers: set[int]) -> None:
    """Let the decoder fail on some frames."""
    grab, retrieve = Capture.grab, Capture.retrieve

    def counted(self: Capture) -> bool:
        self.at = getattr(self, "at", -1) + 1
        return grab(self)

    monkeypatch.setattr(Capture, "grab", counted)
    monkeypatch.setattr(Capture, "retrieve", lambda self: None if self.at in numbers else retrieve(self))


@pytest.mark.parametrize("count", [1, 2, 7, 8, 30, 45])
@pytest.mark.parametrize("suffix", CODINGS)
def test_samples_are_evenly_spaced(clips: dict[str, Path], suffix: str, count: int) -> None:
    frames = sample_video(clips[suffix], count)
    assert len(frames) == count
    assert [frame.seq for frame in frames] == np.round(np.linspace(0, FRAMES - 1, count)).astype(int).tolist()
    assert [number_of(frame.rgb) for frame in frames] == [frame.seq for frame in frames]


def test_an_unreadable_sample_is_replaced_by_the_nearest_earlier_frame(
    clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {0, 1, 19, 20, 29})
    frames = sample_video(clips[".avi"], 4)  # 0, 10, 19, 29
    assert [number_of(frame.rgb) for frame in frames] == [10, 10, 18, 28]


def test_a_video_that_breaks_off_is_sampled_up_to_there(clips: dict[str, Path], tmp_path: Path) -> None:
    frames = sample_video(cut(clips[".mkv"], 0.6, tmp_path / "cut.mkv"), 8)
    assert len(frames) == 8 and frames[0].seq == 0 and FRAMES // 4 < frames[-1].seq < FRAMES - 1


def test_a_directory_of_pictures_is_a_video(tmp_path: Path) -> None:
    for number in range(12):
        cv2.imwrite(str(tmp_path / f"f{number}.png"), np.full((4, 4, 3), number * 8, np.uint8))
    assert [number_of(np.pad(f.rgb, ((20, 0), (20, 0), (0, 0)))) for f in sample_video(tmp_path, 3)] == [0, 6, 11]


def test_samples_of_nothing_are_refused(
    tmp_path: Path, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="0 frames of a video"):
        sample_video(clips[".avi"], 0)
    with pytest.raises(SourceError, match="no such video file"):
        sample_video(tmp_path / "missing.mp4", 4)
    spoil(monkeypatch, set(range(FRAMES)))
    with pytest.raises(SourceError, match="without a readable frame"):
        sample_video(clips[".avi"], 4)


# containers


@pytest.mark.parametrize("suffix", CODINGS)
def test_missing_bytes_are_what_was_cut_off(clips: dict[str, Path], suffix: str, tmp_path: Path) -> None:
    size = clips[suffix].stat().st_size
    assert missing_bytes(clips[suffix]) == 0
    for share in (0.5, 0.9):
        short = cut(clips[suffix], share, tmp_path / f"cut{suffix}")
        found = missing_bytes(short)
        # the index of an MP4 lies behind the box that was cut, so its bytes are unknown
        assert 0 < found <= size - short.stat().st_size
        assert suffix == ".mp4" or found >= size - short.stat().st_size - 1


@pytest.mark.parametrize("size", [0, 1, 7, 11, 12, 40])
def test_stubs_of_containers_are_measured_without_an_error(size: int, tmp_path: Path) -> None:
    for head in (b"RIFF\xff\xff\xff\xffAVI ", b"\x1aE\xdf\xa3" + b"\xff" * 30, b"\0\0\0\x01ftypisom" + b"\0" * 30):
        path = tmp_path / "stub"
        path.write_bytes(head[:size])
        assert missing_bytes(path) >= 0


def test_text_and_pictures_are_no_container() -> None:
    for head in (b"#EXTM3U\n", b"ffconcat version 1.0\n", b"\x89PNG\r\n\x1a\n", b"<smil>", b""):
        assert container_of(head) is None
