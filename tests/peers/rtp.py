"""H.264 for the faulty camera: Annex B into access units, NAL units into RTP packets (RFC 6184), and a made-up SPS."""

from __future__ import annotations

import base64
import functools
import re
import struct
from collections.abc import Iterator
from pathlib import Path

_START = re.compile(b"\x00\x00\x00?\x01")
_FRAGMENT_BYTES = 1200
_SLICE, _IDR, _SPS, _PPS = 1, 5, 7, 8

AccessUnit = tuple[bytes, ...]


@functools.lru_cache(maxsize=16)
def access_units(path: Path) -> tuple[AccessUnit, ...]:
    """The pictures of an Annex B file, each as its NAL units; parameter sets stand before their IDR picture."""
    found: list[AccessUnit] = []
    pending: list[bytes] = []
    for nal in _START.split(path.read_bytes())[1:]:
        pending.append(nal.rstrip(b"\x00"))
        if nal[0] & 31 in (_SLICE, _IDR):
            found.append(tuple(pending))
            pending = []
    return tuple(found)


def is_key(unit: AccessUnit) -> bool:
    """Whether a decoder can begin with this picture."""
    return any(nal[0] & 31 == _IDR for nal in unit)


def parameter_sets(units: tuple[AccessUnit, ...]) -> str:
    """``sprop-parameter-sets`` of SDP."""
    sets = [nal for nal in units[0] if nal[0] & 31 in (_SPS, _PPS)]
    return ",".join(base64.b64encode(nal).decode() for nal in sets)


def with_sps(units: tuple[AccessUnit, ...], sps: bytes) -> tuple[AccessUnit, ...]:
    """The same pictures with another sequence parameter set."""
    return tuple(tuple(sps if nal[0] & 31 == _SPS else nal for nal in unit) for unit in units)


def packets(unit: AccessUnit, sequence: int, timestamp: int, ssrc: int) -> Iterator[bytes]:
    """RTP packets of one picture, numbered from ``sequence``; units above 1200 bytes in fragments (FU-A)."""
    pieces = [piece for nal in unit for piece in _pieces(nal)]
    for number, piece in enumerate(pieces):
        marker = 0x80 if number == len(pieces) - 1 else 0
        head = struct.pack(">BBHII", 0x80, marker | 96, (sequence + number) & 0xFFFF, timestamp & 0xFFFF_FFFF, ssrc)
        yield head + piece


def silence(number: int, samples: int, ssrc: int) -> bytes:
    """One RTP packet of PCMU silence."""
    return struct.pack(">BBHII", 0x80, 0, number & 0xFFFF, number * samples & 0xFFFF_FFFF, ssrc) + b"\xff" * samples


def _pieces(nal: bytes) -> Iterator[bytes]:
    if len(nal) <= _FRAGMENT_BYTES:
        yield nal
        return
    body = nal[1:]
    for at in range(0, len(body), _FRAGMENT_BYTES):
        first, last = at == 0, at + _FRAGMENT_BYTES >= len(body)
        yield bytes([nal[0] & 0xE0 | 28, first << 7 | last << 6 | nal[0] & 31]) + body[at : at + _FRAGMENT_BYTES]


def sequence_parameters(width: int, height: int) -> bytes:
    """An SPS of the baseline profile for pictures of ``width`` x ``height``, multiples of 16 (H.264, 7.3.2.1.1)."""
    bits = _unsigned(0) + _unsigned(0) + _unsigned(2) + _unsigned(1) + "0"  # id, frame number, order type, references
    bits += _unsigned(width // 16 - 1) + _unsigned(height // 16 - 1) + "1100" + "1"
    bits += "0" * (-len(bits) % 8)
    body = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return b"\x67\x42\xc0\x34" + re.sub(b"\x00\x00(?=[\x00-\x03])", b"\x00\x00\x03", body)


def _unsigned(value: int) -> str:
    """Exp-Golomb."""
    digits = f"{value + 1:b}"
    return "0" * (len(digits) - 1) + digits
