"""A directory that is written as a whole, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.bundle.write import place_directory
from runtime.errors import OutputError


@contextmanager
def replaced_directory(output: Path) -> Iterator[Path]:
    """A new directory beside ``output`` to write into, which takes its place at the end of the block in one step.

    When the block raises, what was at ``output`` stays. Raises OutputError when the disk does not take it.
    """
    building = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        yield building
        building.chmod(0o755)
        place_directory(building, output)
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written: {error}", hint="free some space or choose another place"
        ) from error
    finally:
        if building is not None:  # what was not finished, or what was there before
            shutil.rmtree(building, ignore_errors=True)
