"""The distribution ``jetson-vlm``: what is installed, and what each extra brings.

``scripts/lock.py`` reads the dependency lists below too, so that a dependency is named once.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup

ROOT = Path(__file__).resolve().parent

REQUIRES = ["numpy>=1.26", "tokenizers>=0.20", "safetensors>=0.4", "pillow>=10"]

EXTRAS = {
    # Build time: a checkpoint becomes a bundle.
    "export": [
        "torch>=2.6",
        "transformers>=4.57",
        "einops>=0.8",
        "onnx>=1.21",
        "onnxscript>=0.5",
        "pillow>=10",
        "jinja2>=3.1",
    ],
    # Run time: one engine library.
    "cpu": ["onnxruntime>=1.23.2"],
    "ort-gpu": ["onnxruntime-gpu>=1.23.2; platform_machine == 'x86_64'"],
    "cuda12": ["cuda-bindings>=12.9,<13"],
    "cuda13": ["cuda-bindings>=13,<14"],
    "pycuda": ["pycuda>=2024.1"],
    "video": ["opencv-python-headless>=4.8"],
    # The daemon: HTTP, MQTT, metrics, constrained answers, capture.
    "captiond": [
        "aiohttp>=3.13.3",
        "paho-mqtt>=2",
        "prometheus-client>=0.20",
        "llguidance>=1.9,<2",
        "opencv-python-headless>=4.8",
        "tomli>=2; python_version < '3.11'",
    ],
    "rosbag": ["rosbags>=0.10"],
    # Compiling the kernels ahead of time (python -m kernels.build): cubins of 12.6 load on JetPack 6 and 7.
    "compile": [
        "nvidia-cuda-nvrtc-cu12==12.6.85",
        "nvidia-cuda-runtime-cu12==12.6.77",
        "nvidia-cuda-nvrtc==13.0.88",
        "nvidia-cuda-runtime==13.0.96",
    ],
    # Development.
    "test": [
        "pytest>=8",
        "pytest-randomly>=3.15",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "setuptools>=77",
        # Independent peers of the daemon: clients, a browser's driver, validators.
        "openai>=1.50",
        "websockets>=13",
        "selenium>=4.20",
        "jsonschema>=4.20",
        "cryptography>=42",
    ],
    "dev": [
        "pytest>=8",
        "pytest-randomly>=3.15",
        "hypothesis>=6.100",
        "setuptools>=77",
        "ruff>=0.12",
        "mypy>=1.15",
        "import-linter>=2.1",
        "compressed-tensors>=0.20; python_version >= '3.11'",
    ],
}


def version() -> str:
    """Read the version from ``runtime/version.py`` without importing the package."""
    text = (ROOT / "runtime" / "version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise SystemExit('runtime/version.py has no line __version__ = "…"')
    return match.group(1)


def packages() -> list[str]:
    """List the packages that are installed; ``jetson`` is a namespace shared with other distributions."""
    ours = ["runtime", "kernels", "export", "models"]
    regular = find_packages(str(ROOT), include=[name for top in ours for name in (top, f"{top}.*")])
    return regular + find_namespace_packages(str(ROOT), include=["jetson", "jetson.*"])


if __name__ == "__main__":
    setup(
        name="jetson-vlm",
        version=version(),
        description="Vision-language models on NVIDIA Jetson: camera frames in, streaming text out",
        long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
        long_description_content_type="text/markdown",
        license_expression="Apache-2.0",
        license_files=["LICENSE"],
        python_requires=">=3.10,<3.14",
        packages=packages(),
        package_data={
            "runtime": ["py.typed", "demo/**", "captiond/page/*", "captiond/service/*.service"],
            "kernels": [
                "py.typed",
                "csrc/*",
                "emulator/include/**",
                "emulator/mutants/*.json*",
                "compiled/*",
                "nvrtc/*.json",
                "selftest/*.json",
            ],
            "export": ["py.typed"],
        },
        install_requires=REQUIRES,
        extras_require=EXTRAS,
        entry_points={
            "console_scripts": [
                "vlm-build=export.build_engines:main",
                "vlm-quantize=export.quantize:main",
                "vlm-convert=export.convert:main",
                "vlm-caption=runtime.caption:main",
                "vlm-captiond=runtime.captiond.__main__:main",
                "vlm-doctor=runtime.doctor:main",
                "vlm-selftest=kernels.selftest.__main__:main",
            ],
            "vlm.board": ["jetson=jetson.board:detect"],
            "vlm.captures": ["jetson=jetson.camera:pipeline"],
            "vlm.telemetry": ["jetson=jetson.telemetry:read"],
        },
        classifiers=[
            "Development Status :: 3 - Alpha",
            "Operating System :: POSIX :: Linux",
            "Programming Language :: Python :: 3.10",
            "Programming Language :: Python :: 3.11",
            "Programming Language :: Python :: 3.12",
            "Programming Language :: Python :: 3.13",
            "Topic :: Scientific/Engineering :: Artificial Intelligence",
        ],
    )
