"""The bundle: the one thing that export and runtime both know. docs/bundle.md describes each file and key.

``load_bundle("demo-llava.bundle")`` gives a `Bundle`: ``bundle.manifest.vision.tower.tile_px`` is a number of the
manifest, ``bundle.file(bundle.manifest.vision.tower.file)`` the path of a checked file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from runtime.bundle.manifest import MANIFEST_NAME, SCHEMA, FileEntry, Manifest
from runtime.bundle.parse import manifest_bytes, parse_manifest
from runtime.bundle.paths import contained_file
from runtime.bundle.verify import HashCache, Verify, cache_directory, sha256_file, verify_files
from runtime.bundle.write import check_target, write_bundle
from runtime.errors import BundleError
from runtime.strict_json import read_json

__all__ = [
    "MANIFEST_NAME",
    "MAX_MANIFEST_BYTES",
    "SCHEMA",
    "Bundle",
    "FileEntry",
    "HashCache",
    "Manifest",
    "Verify",
    "cache_directory",
    "check_target",
    "load_bundle",
    "manifest_bytes",
    "parse_manifest",
    "sha256_file",
    "write_bundle",
]

MAX_MANIFEST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk whose manifest was parsed and whose files were checked."""

    path: Path
    manifest: Manifest

    def file(self, relative: str) -> Path:
        """The path of a file that the manifest lists; BundleError for any other, and for one that is a link."""
        if relative not in self.manifest.files:
            hint = "manifest.json lists the files of a bundle"
            raise BundleError(f"{self.path}: {relative!r} is not a file of this bundle", hint=hint)
        return contained_file(self.path, relative)


def load_bundle(path: str | os.PathLike[str], verify: Verify = "cached") -> Bundle:
    """Opens a bundle directory: parses its manifest strictly and checks its files.

    verify: "cached" (hash only files that changed since they were last hashed on this machine), "full" (hash all),
    "none" (sizes only). Raises BundleError that names the field or file, its value and what was expected.
    """
    root = Path(path)
    if verify not in ("cached", "full", "none"):
        raise BundleError(f"verify = {verify!r}: expected cached, full or none")
    hint = "name a directory that was made by python -m export.build_engines <checkpoint> --out <bundle>"
    if not root.is_dir():
        raise BundleError(f"{root}: no bundle there (not a directory)", hint=hint)
    if not os.path.lexists(root / MANIFEST_NAME):
        raise BundleError(f"{root}: no bundle there ({MANIFEST_NAME} is missing)", hint=hint)
    manifest_file = contained_file(root, MANIFEST_NAME)
    manifest = parse_manifest(read_json(manifest_file, max_bytes=MAX_MANIFEST_BYTES, error=BundleError, hint=hint))
    verify_files(root, manifest.files, verify)
    return Bundle(root, manifest)
