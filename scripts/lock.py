"""Write requirements.lock: every package that scripts/demo, scripts/test and scripts/check install, pinned and hashed.

    python scripts/lock.py            # needs uv on PATH, or VLM_UV

One file serves Python 3.10 to 3.13 on x86-64 and aarch64 through environment markers. A comment above each package
names the sets that need it. torch is not in the lock, because the build to take depends on the machine
(docs/install.md); what torch itself needs is.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
TORCH_NEEDS = ["filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy", "typing-extensions"]
# For packages that require torch: it is resolved on no machine, and installed apart.
WITHOUT_TORCH = "torch ; sys_platform == 'never'\n"
HEADER = """\
# Written by scripts/lock.py; do not edit. For Python 3.10 to 3.13 on Linux, x86-64 and aarch64.
# `# for:` names the sets of scripts/environment.py that install the package below it.
"""


def sets() -> dict[str, list[str]]:
    """Name the direct requirements of each set, from setup.py's lists."""
    declared = runpy.run_path(str(ROOT / "setup.py"), run_name="lock")
    extras: dict[str, list[str]] = declared["EXTRAS"]
    export = [item for item in extras["export"] if not item.startswith("torch")]
    lean_export = [item for item in export if item.startswith(("onnx>", "jinja2"))]
    return {
        "demo": declared["REQUIRES"] + extras["cpu"] + extras["video"] + lean_export,
        "captiond": extras["captiond"],
        "trace": export + TORCH_NEEDS,
        "test": extras["test"] + extras["rosbag"],
        "check": extras["dev"],
        "compile": [*extras["compile"], *extras["cuda13"]],
    }


def resolve(requirements: list[str], constraints: str = "") -> str:
    """Resolve for all supported Pythons at once and return the pinned, hashed lines without any address."""
    with tempfile.TemporaryDirectory() as folder:
        source, limits, overrides = (Path(folder, name) for name in ("in.txt", "constraints.txt", "overrides.txt"))
        source.write_text("\n".join(requirements) + "\n")
        limits.write_text(constraints)
        overrides.write_text(WITHOUT_TORCH)
        command = [
            os.environ.get("VLM_UV", "uv"),
            "pip",
            "compile",
            "--quiet",
            "--universal",
            "--python-version",
            "3.10",
        ]
        command += ["--generate-hashes", "--no-annotate", "--no-header", "--no-emit-index-url", "--no-emit-find-links"]
        command += ["--constraint", str(limits), "--override", str(overrides), str(source)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout


def without_scope(text: str) -> str:
    """Drop from the markers what holds for every machine that the lock serves."""
    scope = r"(python_full_version < '3\.14'|sys_platform == 'linux')"
    text = re.sub(rf" and {scope}", "", text)
    text = re.sub(rf"([;(] ?){scope} and ", r"\1", text)
    return re.sub(rf" ; {scope}(?= \\$)", "", text, flags=re.MULTILINE)


def entries(text: str) -> list[str]:
    """Split a resolution into one block per pinned package: its line and its hashes."""
    return [block.rstrip() for block in re.split(r"^(?=\S)", text, flags=re.MULTILINE) if block.strip()]


def name_of(entry: str) -> str:
    return entry.split("==", 1)[0]


def main() -> int:
    wanted = sets()
    everything = without_scope(resolve([item for items in wanted.values() for item in items]))
    if "://" in everything:
        raise SystemExit("the resolution names an address; the lock must not")
    pins = re.sub(r" \\\n( +--hash=\S+( \\)?\n?)+", "\n", everything)
    members = {label: {name_of(entry) for entry in entries(resolve(items, pins))} for label, items in wanted.items()}
    blocks = []
    for entry in entries(everything):
        labels = [label for label in wanted if name_of(entry) in members[label]]
        blocks.append(f"# for: {' '.join(labels)}\n{entry}\n")
    LOCK.write_text(HEADER + "\n" + "".join(blocks), encoding="utf-8")
    print(f"{LOCK.name}: {len(blocks)} pins", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
