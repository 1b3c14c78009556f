"""How large a picture may be. Checked on the header, before a pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.errors import ImageError

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits of one picture; the defaults suit a local program, a network service should set less.

    ``max_pixels``: width times height (64 Mi, the square of 8192: 192 MiB decoded). ``max_side_px``: the longer side
    (65535, that of JPEG). ``max_bytes``: of the encoded file (64 MiB).
    """

    max_pixels: int = 64 * MIB
    max_side_px: int = 65_535
    max_bytes: int = 64 * MIB

    def check_size(self, width: int, height: int) -> None:
        """Raises ImageError when a picture of this size is empty or too large."""
        if width < 1 or height < 1:
            raise ImageError(f"the picture is empty: {width}x{height} px", hint="each side must be at least 1 px")
        if max(width, height) > self.max_side_px:
            raise ImageError(
                f"the picture is {width}x{height} px, the limit of a side is {self.max_side_px} px",
                hint="cut it into parts or make it smaller",
            )
        if width * height > self.max_pixels:
            raise ImageError(
                f"the picture is {width}x{height} px = {width * height:,} pixels, the limit is {self.max_pixels:,}",
                hint="make it smaller first; the model sees far fewer pixels anyway",
            )

    def check_bytes(self, count: int) -> None:
        """Raises ImageError when an encoded picture has too many bytes, or none."""
        if count == 0:
            raise ImageError("the picture has 0 bytes", hint="the file is empty: write it again")
        if count > self.max_bytes:
            raise ImageError(
                f"the picture has {count:,} bytes, the limit is {self.max_bytes:,}", hint="save it as JPEG, or smaller"
            )


DEFAULT_LIMITS = ImageLimits()
