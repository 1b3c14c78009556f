"""Watch cameras and tell what they see: the daemon's command line.

    python -m runtime.captiond captiond.toml
    python -m runtime.captiond --demo

docs/captiond.md is its reference.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from runtime.errors import VlmError
from runtime.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(argv)
    from runtime.captiond.command import run

    try:
        return run(options)
    except VlmError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="vlm-captiond",
        description="Caption cameras for months: reconnects, HTTP and OpenAI API, MQTT, webhooks, a page.",
        epilog="Signals: HUP reads the configuration again, TERM and INT stop. Exit codes: 0 ok, 2 usage, "
        "3 configuration, 4 model, 7 network, 8 output, 130 and 143 stopped twice. Reference: docs/captiond.md",
    )
    parser.add_argument("config", nargs="?", help="TOML file; what follows changes or replaces its settings")
    parser.add_argument("--bundle", metavar="DIR", help="engine.bundle: directory made by export.build_engines")
    parser.add_argument("--source", action="append", metavar="URI", help="watch this instead; several are allowed")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="ask this of the sources named here, in turn")
    parser.add_argument("--captions-per-s", type=float, metavar="N", help="of the sources named here; 0: all it can")
    parser.add_argument("--loop", action="store_true", help="files named here begin again at their end")
    parser.add_argument("--demo", action="store_true", help="the embedded model on the embedded video")
    parser.add_argument("--listen", metavar="ADDRESS", help="server.listen (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="server.port (default: 8090; 0 takes a free one)")
    parser.add_argument("--json", action="store_true", help="JSON lines on standard output")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="log.level (default: info)")
    parser.add_argument(
        "--check-config", action="store_true", help="check the configuration and what it names, and end"
    )
    parser.add_argument("--new-key", metavar="NAME", help="make an API key: prints it and its lines of TOML, and ends")
    parser.add_argument("--version", action="version", version=f"jetson-vlm {__version__}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
