"""The prompts that a quantisation is calibrated on: a folder of pictures, a text file or JSON lines. Torch-free."""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from export.quantization.request import SEED
from runtime.bundle import sha256_file
from runtime.errors import ExportError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_IMAGE_BYTES = 64 << 20
MAX_IMAGE_PIXELS = 64_000_000
MAX_TEXT_CHARACTERS = 65_536
MAX_FILE_BYTES = 256 << 20
MAX_IMAGES_OF_A_PROMPT = 16
# What every picture of a folder is asked, in turn: short and long answers, reading, counting, places.
QUESTIONS = (
    "Describe this picture in detail.",
    "What is in the foreground, and what is behind it?",
    "How many people, animals or vehicles can be seen?",
    "Is there any text in the picture? If so, read it out.",
    "What colour is the largest object?",
    "Where was this picture probably taken, and why do you think so?",
    "Is anything here dangerous or out of place? Answer with yes or no first.",
    "Give this picture a short title.",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt: pictures, then a text."""

    text: str
    images: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Prompts in the order of their use, their digest (texts and contents of pictures), and what was left out."""

    samples: tuple[Sample, ...]
    digest: str
    skipped: tuple[str, ...]


def read_calibration(path: Path, count: int) -> CalibrationSet:
    """At most ``count`` prompts from a folder of pictures, a .txt file (a prompt a line) or a .jsonl file.

    JSON lines are ``{"text": …, "images": [paths]}``; paths count from the file's folder. Of a larger set a seeded
    choice is taken, the same each time; of a smaller folder each picture is asked several questions. Pictures that
    cannot be read, texts that are too long and the like are left out and named in ``skipped``. Raises ExportError when
    nothing is left, for a path of another kind, and for a file above 256 MiB.
    """
    found = list(_folder(path) if path.is_dir() else _file(path))
    random.Random(SEED).shuffle(found)
    samples: list[Sample] = []
    skipped: list[str] = []
    hashes: dict[Path, str] = {}
    for position, entry in enumerate(found):
        if len(samples) == count:
            break
        problem = entry if isinstance(entry, str) else _problem(entry, hashes)
        if problem:
            skipped.append(problem)
        elif isinstance(entry, Sample):
            samples.append(_asked(entry, position))
    if not samples:
        shown = f", the first one: {skipped[0]}" if skipped else ""
        raise ExportError(
            f"{path}: none of its {len(found)} calibration prompts can be used{shown}",
            hint="a folder of pictures, a .txt file with a prompt a line, or a .jsonl file",
        )
    if path.is_dir():
        samples = _with_more_questions(samples, count)
    return CalibrationSet(tuple(samples), _digest(samples, hashes), tuple(skipped))


def _folder(path: Path) -> Iterator[Sample]:
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
            yield Sample("", (file,))


def _file(path: Path) -> Iterator[Sample | str]:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ExportError(f"{path}: {size} bytes, at most {MAX_FILE_BYTES} are read", hint="split the file")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise ExportError(
            f"{path}: calibration prompts cannot be read: {problem}", hint="name a folder, a .txt or a .jsonl file"
        ) from problem
    if path.suffix.lower() not in (".txt", ".jsonl"):
        raise ExportError(f"{path}: a {path.suffix or 'nameless'} file", hint="a folder of pictures, .txt or .jsonl")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield Sample(line.strip()) if path.suffix.lower() == ".txt" else _json_line(path, number, line)


def _json_line(path: Path, number: int, line: str) -> Sample | str:
    where = f"{path}:{number}"
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError) as problem:
        return f"{where}: no JSON: {problem}"
    if not isinstance(fields, dict) or not set(fields) <= {"text", "images"}:
        return f'{where}: expected {{"text": …, "images": […]}}'
    text, images = fields.get("text", ""), fields.get("images", [])
    if not isinstance(text, str) or not isinstance(images, list) or not all(isinstance(i, str) for i in images):
        return f"{where}: text must be a string, images a list of paths"
    if not text.strip() and not images:
        return f"{where}: neither text nor images"
    return Sample(text.strip(), tuple(path.parent / image for image in images))


def _problem(sample: Sample, hashes: dict[Path, str]) -> str | None:
    """Why a prompt cannot be used; the digests of its pictures go into ``hashes``."""
    if len(sample.text) > MAX_TEXT_CHARACTERS:
        return f"a text of {len(sample.text)} characters, at most {MAX_TEXT_CHARACTERS}: {sample.text[:40]!r}…"
    if len(sample.images) > MAX_IMAGES_OF_A_PROMPT:
        return f"a prompt with {len(sample.images)} pictures, at most {MAX_IMAGES_OF_A_PROMPT}"
    for image in sample.images:
        if image not in hashes:
            problem = _image_problem(image)
            if problem:
                return f"{image}: {problem}"
            hashes[image] = sha256_file(image)
    return None


def _image_problem(path: Path) -> str | None:
    try:
        size = path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            return f"{size} bytes, at most {MAX_IMAGE_BYTES}"
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                if picture.width * picture.height > MAX_IMAGE_PIXELS:
                    return f"{picture.width} × {picture.height} pixels, at most {MAX_IMAGE_PIXELS}"
                picture.load()
    except (
        *(OSError, UnidentifiedImageError, ValueError, SyntaxError),
        *(Image.DecompressionBombError, Image.DecompressionBombWarning),
    ) as problem:
        return f"cannot be read as a picture: {problem}"
    return None


def _asked(sample: Sample, position: int) -> Sample:
    """A picture without a text gets a question."""
    return sample if sample.text else Sample(QUESTIONS[position % len(QUESTIONS)], sample.images)


def _with_more_questions(samples: list[Sample], count: int) -> list[Sample]:
    """Further rounds over a small folder, each picture with its next question, until there are ``count`` prompts."""
    result = list(samples)
    for turn in range(1, len(QUESTIONS)):
        for sample in samples[: max(0, count - len(result))]:
            following = (QUESTIONS.index(sample.text) + turn) % len(QUESTIONS)
            result.append(Sample(QUESTIONS[following], sample.images))
    return result


def _digest(samples: list[Sample], hashes: dict[Path, str]) -> str:
    """SHA-256 over one JSON line per prompt: its text and the SHA-256 of its pictures, wherever they lie."""
    whole = hashlib.sha256()
    for sample in samples:
        line = json.dumps([sample.text, [hashes[image] for image in sample.images]], ensure_ascii=True)
        whole.update(line.encode() + b"\n")
    return whole.hexdigest()
