"""Makes the images of a chat request into pictures that the engine can see.

``data:`` URLs hold the encoded image; ``source:<name>`` is this daemon's own: the newest frame of a camera;
``http:`` and ``https:`` are fetched where the configuration permits it.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence

from runtime.captiond.asks import NewestFrame, SharedImage
from runtime.captiond.http.errors import from_vlm_error
from runtime.captiond.http.services import Services
from runtime.captiond.openai.fields import refused
from runtime.captiond.openai.remote import fetch
from runtime.captiond.openai.request import ImageRef
from runtime.errors import ImageError, SourceError

_TYPES = ("image/jpeg", "image/jpg", "image/png", "image/webp")


class Images:
    """The pictures of one request. Whoever made it closes it when the engine needs them no more."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.pictures: list[NewestFrame | SharedImage] = []

    async def load(self, images: Sequence[ImageRef]) -> None:
        """Read, fetch and decode all. Raises HttpError that names the image."""
        for image in images:
            self.pictures.append(await self._picture(image))

    def close(self) -> None:
        """Let go of the memory of decoded images; idempotent."""
        pictures, self.pictures = self.pictures, []
        for picture in pictures:
            if isinstance(picture, SharedImage):
                os.close(picture.fd)

    async def _picture(self, image: ImageRef) -> NewestFrame | SharedImage:
        scheme, _, rest = image.url.partition(":")
        if scheme.lower() == "source":
            return self._newest(rest, image.param)
        limit = self._services.server.max_image_bytes
        if scheme.lower() == "data":
            data = decoded_url(rest, limit, image.param)
        else:
            data = await fetch(image.url, image.param, self._services.server)
        try:
            return await self._services.pictures.decode(data)
        except ImageError as error:
            raise refused(image.param, str(error), code="invalid_image") from error

    def _newest(self, name: str, param: str) -> NewestFrame:
        if name not in self._services.sources:
            raise refused(param, f"there is no source {name[:64]!r}", status=404, code="unknown_source")
        if self._services.sources[name].runner.newest() is None:
            raise from_vlm_error(SourceError(f"the source {name!r} has no picture now"), param)
        return NewestFrame(name, -1)


def decoded_url(rest: str, limit: int, param: str) -> bytes:
    """The bytes of a data URL, whose ``rest`` follows "data:". Raises HttpError."""
    head, comma, text = rest.partition(",")
    kind, *options = (part.strip().lower() for part in head[:256].split(";"))
    if not comma or "base64" not in options or len(head) > 256:
        raise refused(param, "the URL is no data:<type>;base64,<data>", code="invalid_image")
    if kind not in _TYPES:
        problem = f"images of the type {kind[:40]!r} are not taken: JPEG, PNG and WebP are"
        raise refused(param, problem, code="invalid_image")
    if len(text) * 3 // 4 > limit + 2:
        problem = f"an image of {len(text) * 3 // 4} bytes, the most is {limit} (server.max_image_bytes)"
        raise refused(param, problem, status=413, code="image_too_large")
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise refused(param, "the data is no base64", code="invalid_image") from None
