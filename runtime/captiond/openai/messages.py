"""Reads ``messages`` of a chat request."""

from __future__ import annotations

from runtime.captiond.asks import Role
from runtime.captiond.openai.fields import Fields, refused, shown
from runtime.captiond.openai.request import ImageRef, Turn

MAX_MESSAGES = 256
MAX_PARTS = 256
MAX_TEXT_CHARS = 1 << 20
MAX_URL_CHARS = 2048
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SCHEMES = ("data:", "http://", "https://", "source:")


def turns_of(fields: Fields, max_images: int) -> tuple[Turn, ...]:
    """The turns of a request; messages of one role that follow each other are one turn. Raises HttpError."""
    messages = fields.items("messages", MAX_MESSAGES)
    if not messages:
        raise refused("messages", "at least one message is needed", code="missing_parameter")
    turns: list[Turn] = []
    for index, value in enumerate(messages):
        turn = _turn(Fields(value, f"messages[{index}]"))
        if turns and turns[-1].role == turn.role:
            before = turns.pop().parts
            between = ("\n",) if isinstance(before[-1], str) else ()
            turn = Turn(turn.role, (*before, *between, *turn.parts))
        turns.append(turn)
    images = sum(isinstance(part, ImageRef) for turn in turns for part in turn.parts)
    if images > max_images:
        raise refused("messages", f"{images} images, the most is {max_images} (server.max_images)")
    chars = sum(len(part) for turn in turns for part in turn.parts if isinstance(part, str))
    if chars > MAX_TEXT_CHARS:
        raise refused("messages", f"{chars} characters of text, the most is {MAX_TEXT_CHARS}")
    return tuple(turns)


def _turn(message: Fields) -> Turn:
    role = message.text("role", most=64)
    if role in ("tool", "function"):
        raise refused(message.path("role"), f"{role!r} is not supported: this model uses no tools")
    if role not in _ROLES:
        raise message.wrong("role", role, "system, developer, user or assistant")
    for name in ("tool_calls", "function_call", "audio"):
        if message.members.get(name) not in (None, []):
            raise refused(message.path(name), "this server does not support it", code="unsupported_parameter")
    known = ("role", "content", "name", "refusal", "tool_calls", "function_call", "audio", "annotations")
    message.only(frozenset(known))
    message.text("name", most=256)
    content = message.members.get("content")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, str):
        return Turn(_ROLES[role], (content,))
    if not isinstance(content, list) or not content:
        raise message.wrong("content", content, "a text or a list of parts")
    if len(content) > MAX_PARTS:
        raise refused(message.path("content"), f"{len(content)} parts, the most is {MAX_PARTS}")
    parts = [_part(Fields(part, f"{message.path('content')}[{i}]"), role) for i, part in enumerate(content)]
    return Turn(_ROLES[role], tuple(parts))


def _part(part: Fields, role: str) -> str | ImageRef:
    kind = part.text("type", most=64)
    if kind == "text":
        part.only(frozenset(("type", "text")))
        text = part.text("text", most=MAX_TEXT_CHARS)
        if text is None:
            raise refused(part.path("text"), "it is missing", code="missing_parameter")
        return text
    if kind != "image_url":
        what = f"{shown(kind)} is given, text or image_url is needed"
        raise refused(part.path("type"), what, code="unsupported_content")
    if role != "user":
        raise refused(part.path("type"), f"an image in a message of the {role}: only the user shows images")
    part.only(frozenset(("type", "image_url")))
    return _image(part)


def _image(part: Fields) -> ImageRef:
    value = part.members.get("image_url")
    # A bare text instead of the object: what many clients send.
    image = Fields({"url": value} if isinstance(value, str) else value, part.path("image_url"))
    image.only(frozenset(("url", "detail")))
    if image.text("detail", most=16) not in (None, "auto", "low", "high"):
        raise image.wrong("detail", image.members["detail"], "auto, low or high")
    url = image.text("url", most=1 << 28)
    param = image.path("url")
    if not url or not url.lower().startswith(_SCHEMES):
        given = shown((url or "")[:24])
        raise refused(param, f"{given} is given, a data:, http(s): or source: URL is needed")
    if not url.lower().startswith("data:") and len(url) > MAX_URL_CHARS:
        raise refused(param, f"a URL of {len(url)} characters, the most is {MAX_URL_CHARS}")
    return ImageRef(url, param)
