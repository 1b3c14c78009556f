"""The leaves of a schema in their plain form: texts and numbers, bounded, and any value at all."""

from __future__ import annotations

from runtime.constraints.pattern import check_pattern
from runtime.constraints.schema_checks import MAX_WHOLE, Node, check_order, count_of, is_of, shown
from runtime.errors import InputError

MAX_LENGTH = 4096
MAX_MIN_LENGTH = 1024
MAX_MULTIPLE = 1000
MAX_NUMBER = 10**15
ANY = "any"
FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")
_MONTHS = "(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
_DATE = f"[12][0-9]{{3}}-{_MONTHS}"
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
# Stricter than llguidance, which takes the 31st of February, the year 0 and leap seconds. Leap days are left out.
_FORMAT_PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}


def plain_string(node: Node, place: str) -> Node:
    """A text: its length, its pattern or format."""
    low = count_of(node, "minLength", 0, MAX_MIN_LENGTH, place)
    high = count_of(node, "maxLength", None, None, place)
    plain: Node = {"type": "string"}
    if low:
        plain["minLength"] = low
    if high is not None:
        check_order("minLength", low or 0, "maxLength", high, place)
        plain["maxLength"] = min(high, MAX_LENGTH)
    if "pattern" in node:
        check_pattern(node["pattern"], place)
        plain["pattern"] = node["pattern"]
    if "format" in node:
        if node["format"] not in FORMATS:
            name = shown(node["format"])
            raise InputError(f"schema at {place}: the format {name} is not supported: {', '.join(FORMATS)} are")
        if "pattern" in plain:
            raise InputError(f"schema at {place}: the keyword 'format' beside 'pattern' is not supported")
        if node["format"] in _FORMAT_PATTERNS:
            plain["pattern"] = _FORMAT_PATTERNS[node["format"]]
        else:
            plain["format"] = node["format"]
    return plain


def plain_number(kind: str, node: Node, place: str) -> Node:
    """A number between bounds; those that are not given are what readers of JSON keep exactly."""
    limit = MAX_WHOLE if kind == "integer" else MAX_NUMBER
    plain: Node = {"type": kind}
    for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if keyword not in node:
            continue
        value = node[keyword]
        if not is_of(value, "number") or not abs(value) <= limit:
            raise InputError(f"schema at {place}: {keyword!r} is {shown(value)}: a number within ±{limit} is needed")
        if kind == "number" and value != round(value, 12):
            raise InputError(f"schema at {place}: {keyword!r} is {value!r}: at most 12 decimals are supported")
        plain[keyword] = value
    if "minimum" not in plain and "exclusiveMinimum" not in plain:
        plain["minimum"] = -limit
    if "maximum" not in plain and "exclusiveMaximum" not in plain:
        plain["maximum"] = limit
    if "multipleOf" in node:
        step = node["multipleOf"]
        if not is_of(step, "integer") or not 1 <= step <= MAX_MULTIPLE:
            raise InputError(
                f"schema at {place}: 'multipleOf' is {shown(step)}: a whole number from 1 to {MAX_MULTIPLE} is needed"
            )
        plain["multipleOf"] = int(step)
    return plain


def any_value() -> Node:
    """Any JSON value, for parts that ask for nothing."""
    deeper = {"$ref": f"#/$defs/{ANY}"}
    return {
        "anyOf": [
            {"type": "null"},
            {"type": "boolean"},
            {"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER},
            {"type": "string"},
            {"type": "array", "items": deeper},
            {"type": "object", "additionalProperties": deeper},
        ]
    }
