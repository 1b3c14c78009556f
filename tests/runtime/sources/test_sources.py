"""open_source: pictures, globs, directories, synthetic scenes, schemes of other packages."""

from __future__ import annotations

import threading
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import ClosedError, ImageError, SourceError
from runtime.sources import Clock, FrameSource, SourceOptions, open_source, registry
from runtime.sources.uri import parse_uri, without_credentials
from runtime.types import Frame

Image = pytest.importorskip("PIL.Image")


class FakeClock(Clock):
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.t_ns = 1_000

    def now_ns(self) -> int:
        return self.t_ns

    def wait_until(self, t_ns: int, stop: threading.Event) -> None:
        self.t_ns = max(self.t_ns, t_ns)


def save(path: Path, value: int) -> Path:
    Image.new("RGB", (4, 3), (value, 0, 0)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in (10, 2, 1):
        save(tmp_path / f"photo{number}.png", number)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def reds(uri: object, **options: object) -> list[int]:
    with open_source(uri, **options) as source:
        return [int(frame.rgb[0, 0, 0]) for frame in source]


def test_one_picture_is_one_frame(photos: Path) -> None:
    with open_source(photos / "photo2.png", clock=FakeClock()) as source:
        (frame,) = source
    assert (frame.seq, frame.t_capture_ns, frame.t_capture_kind) == (0, 1_000, "arrival")
    assert frame.source == str(photos / "photo2.png") and not source.live


def test_directories_and_globs_give_pictures_in_natural_order(photos: Path) -> None:
    assert reds(photos) == [1, 2, 10]
    assert reds(str(photos / "*.png")) == [1, 2, 10]
    assert reds(str(photos / "photo?.png")) == [1, 2]
    assert reds(f"file://{photos}/photo[12].png") == [1, 2]
    (photos / "a" / "b").mkdir(parents=True)
    save(photos / "a" / "b" / "deep.png", 77)
    assert reds(str(photos / "**" / "deep.png")) == [77]


def test_a_name_with_brackets_is_a_name_when_it_exists(tmp_path: Path) -> None:
    save(tmp_path / "a[1].png", 7)
    assert reds(tmp_path / "a[1].png") == [7]


def test_file_uris_are_percent_decoded(tmp_path: Path) -> None:
    save(tmp_path / "my photo.png", 9)
    assert reds(f"file://{tmp_path}/my%20photo.png") == [9]
    with pytest.raises(SourceError, match="not the host 'server'"):
        open_source("file://server/photo.png")


def test_a_loop_goes_on_counting(photos: Path) -> None:
    with open_source(photos, loop=True) as source:
        frames = [next(source) for _ in range(7)]
    assert [frame.seq for frame in frames] == list(range(7))
    assert [int(frame.rgb[0, 0, 0]) for frame in frames] == [1, 2, 10, 1, 2, 10, 1]


def test_a_damaged_picture_raises_in_its_turn_and_the_next_one_comes(photos: Path) -> None:
    (photos / "photo2.png").write_bytes((photos / "photo2.png").read_bytes()[:40])
    with open_source(photos) as source:
        assert int(next(source).rgb[0, 0, 0]) == 1
        with pytest.raises(ImageError, match=r"photo2\.png"):
            next(source)
        assert [frame.seq for frame in source] == [2]


def test_pictures_are_known_by_their_first_bytes_not_by_their_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", 3).rename(tmp_path / "a.mp4")
    assert reds(path) == [3]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "missing.png", "there is no such file"),
        (lambda p: p / "*.gif", "no file matches"),
        (lambda p: p / "notes.txt", "neither a picture nor a video"),
        (lambda p: p / "empty.mp4", "an empty file"),
        (lambda p: p / "folder", "no pictures in this directory"),
        (lambda p: "/dev/null", "not a regular file"),
        (lambda p: "", "names no source"),
        (lambda p: "a\0b", "names no source"),
    ],
)
def test_what_is_no_source_is_refused_when_it_is_opened(photos: Path, make: object, words: str) -> None:
    (photos / "empty.mp4").write_bytes(b"")
    (photos / "folder").mkdir()
    with pytest.raises(SourceError, match=words) as caught:
        open_source(make(photos))
    assert caught.value.exit_code == 5 and caught.value.hint


def test_a_playlist_never_reaches_the_decoder(tmp_path: Path) -> None:
    """To FFmpeg, such a file opens other files and hosts."""
    path = tmp_path / "film.mp4"
    path.write_text("#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
    with pytest.raises(SourceError, match="neither a picture nor a video"):
        open_source(path)


def test_a_closed_source_ends_and_cannot_be_iterated_again(photos: Path) -> None:
    source = open_source(photos)
    frames = iter(source)
    next(frames)
    source.close()
    source.close()
    assert next(frames, None) is None
    with pytest.raises(ClosedError, match="the source is closed"):
        iter(source)


# synthetic://


def test_synthetic_scenes_are_the_same_for_the_same_seed() -> None:
    def film(seed: int) -> list[np.ndarray]:
        uri = f"synthetic://?seed={seed}&width=96&height=64&frames=4"
        with open_source(uri, every_frame=True) as source:
            return [frame.rgb for frame in source]

    one, same, other = film(5), film(5), film(6)
    assert len(one) == 4 and one[0].shape == (64, 96, 3) and one[0].dtype == np.uint8
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], one[3]) and not np.array_equal(one[0], other[0])


def test_synthetic_frames_are_due_at_their_rate() -> None:
    from runtime.sources.synthetic import SyntheticSource

    source = SyntheticSource(parse_uri("synthetic://?width=64&height=64&fps=20&frames=4"), clock=FakeClock())
    assert source.live
    assert [frame.t_capture_ns - 1_000 for frame in source] == [0, 50_000_000, 100_000_000, 150_000_000]


def test_a_synthetic_loop_shows_the_same_film_again() -> None:
    with open_source("synthetic://?width=64&height=64&frames=2", every_frame=True, loop=True) as source:
        frames = [next(source) for _ in range(4)]
    assert [frame.seq for frame in frames] == [0, 1, 2, 3]
    np.testing.assert_array_equal(frames[0].rgb, frames[2].rgb)
    np.testing.assert_array_equal(frames[1].rgb, frames[3].rgb)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("speed=1", "unknown parameter 'speed'"),
        ("fps=0", "outside"),
        ("fps=nan", "outside"),
        ("fps=fast", "not a number"),
        ("width=8", "outside 32..4096"),
        ("width=5000", "outside 32..4096"),
        ("frames=0", "outside"),
        ("seed=-1", "outside"),
        ("seed=1&seed=2", "seed is given twice"),
        ("width=1000&height=100", "narrower than"),
    ],
)
def test_wrong_synthetic_parameters_are_refused(query: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        open_source(f"synthetic://?{query}")


# schemes of other packages


class Camera(FrameSource):
    """What another package might bring."""

    def __init__(self, uri: str, options: SourceOptions) -> None:
        super().__init__(without_credentials(uri), live=True)
        self.uri, self.options = uri, options

    def _next(self) -> Frame | None:
        return None


def bring(monkeypatch: pytest.MonkeyPatch, scheme: str, target: str) -> None:
    entries = [EntryPoint(scheme, target, registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)


def test_a_scheme_of_another_package_gets_uri_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Camera] = []
    bring(monkeypatch, "rtsp", "somewhere:Camera")
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda *args: made.append(Camera(*args)) or made[-1])
    with open_source("rtsp://me:secret@camera/1", every_frame=True, loop=True) as source:
        assert source is made[0] and source.name == "rtsp://***@camera/1"
    assert made[0].uri == "rtsp://me:secret@camera/1"
    assert made[0].options == SourceOptions(every_frame=True, loop=True)
    with open_source("rtsp://camera/1") as source:
        assert source is not made[1] and not source.live  # a live source gets its mailbox here


def test_a_source_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bring(monkeypatch, "csi", "no_such_package_here:Camera")
    with pytest.raises(SourceError, match=r"csi://0: the source 'no_such_package_here:Camera' cannot be loaded"):
        open_source("csi://0")


@pytest.mark.parametrize("uri", ["gopro://1", "/dev/video0", "v4l2:///dev/video0", "rtsp://user:pass@host/x"])
def test_an_unknown_scheme_names_what_is_known_and_what_to_install(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    with pytest.raises(SourceError) as caught:
        open_source(uri)
    text = str(caught.value)
    assert "known are file://, rosbag://, synthetic://" in text and "vlm.sources" in text and "pass@" not in text


def test_remote_files_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    with pytest.raises(SourceError, match="not fetched"):
        open_source("https://example.org/film.mp4")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://user:pa:ss@host:554/a?b=c", "rtsp://***@host:554/a?b=c"),
        ("rtsp://user:p@ss@host/a", "rtsp://***@host/a"),
        ("rtsp://host/a@b", "rtsp://host/a@b"),
        ("csi://0", "csi://0"),
        ("plain@path.mp4", "plain@path.mp4"),
    ],
)
def test_credentials_are_never_shown(uri: str, shown: str) -> None:
    assert without_credentials(uri) == shown
    assert parse_uri(uri).name == shown
