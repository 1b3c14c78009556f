"""Reads the JSON of ``POST /v1/chat/completions``: what is honoured, what is ignored, what is refused by name.

Ignored, since it changes nothing that this daemon does: `IGNORED`. Refused unless it says "no": `OFF`. Anything else
that is not known is refused, so that a misspelt parameter is noticed.
"""

from __future__ import annotations

from runtime.captiond.asks import ConstraintSpec
from runtime.captiond.openai.fields import Fields, refused
from runtime.captiond.openai.messages import turns_of
from runtime.captiond.openai.request import ChatRequest

MAX_NEW_TOKENS = 1 << 20
DEFAULT_NEW_TOKENS = 512
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_TOP_LOGPROBS = 20
_SEEDS = 2**64

HONOURED = frozenset(
    (
        "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
        "seed", "stop", "n", "logprobs", "top_logprobs", "response_format",
        "top_k", "min_p", "repetition_penalty",  # not OpenAI's: vLLM's names
    )
)  # fmt: skip
IGNORED = frozenset(
    (
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "reasoning_effort", "verbosity", "prediction", "parallel_tool_calls",
    )
)  # fmt: skip
# Parameter: the values that ask for nothing.
OFF: dict[str, tuple[object, ...]] = {
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
}


def parse_request(body: object, *, max_images: int) -> ChatRequest:
    """The request that a JSON value is. Raises HttpError 400 that names the parameter, and nothing else."""
    fields = Fields(body)
    _check_known(fields)
    model = fields.text("model", most=256)
    if not model:
        raise refused("model", "it is missing: GET /v1/models names the one that is loaded", code="missing_parameter")
    turns = turns_of(fields, max_images)
    if fields.whole("n", 1, 128) not in (None, 1):
        raise refused("n", f"{fields.members['n']} answers are asked for, this server gives one")
    stream = fields.flag("stream")
    logprobs = fields.flag("logprobs")
    return ChatRequest(
        model=model,
        turns=turns,
        params=_params(fields, logprobs),
        constraint=_constraint(fields),
        stream=stream,
        include_usage=_include_usage(fields, stream),
        logprobs=logprobs,
    )


def _check_known(fields: Fields) -> None:
    fields.only(HONOURED | IGNORED | OFF.keys())
    for name, harmless in OFF.items():
        value = fields.members.get(name)
        if value is not None and (isinstance(value, bool) or value not in harmless):
            raise refused(name, "this server does not support it", code="unsupported_parameter")


def _include_usage(fields: Fields, stream: bool) -> bool:
    options = fields.fields("stream_options")
    if options is None:
        return False
    if not stream:
        raise refused("stream_options", 'it is allowed with "stream": true alone')
    options.only(frozenset(("include_usage", "include_obfuscation")))
    options.flag("include_obfuscation")
    return options.flag("include_usage")


def _params(fields: Fields, logprobs: bool) -> dict[str, object]:
    params: dict[str, object] = {}
    long = fields.whole("max_completion_tokens", 1, MAX_NEW_TOKENS)
    tokens = fields.whole("max_tokens", 1, MAX_NEW_TOKENS)
    params["max_new_tokens"] = long or tokens or DEFAULT_NEW_TOKENS
    for name, low, high in (("temperature", 0.0, 2.0), ("min_p", 0.0, 1.0)):
        value = fields.number(name, low, high)
        if value is not None:
            params[name] = value
    penalty = fields.number("repetition_penalty", 0.01, 100.0)
    if penalty is not None:
        params["repetition_penalty"] = penalty
    top_k = fields.whole("top_k", -1, 2**31 - 1)
    if top_k is not None:
        params["top_k"] = max(top_k, 0)
    top_p = fields.number("top_p", 0.0, 1.0)
    if top_p is not None:
        params |= {"top_p": top_p} if top_p > 0 else {"top_k": 1}
    seed = fields.whole("seed", -(2**63), _SEEDS - 1)
    if seed is not None:
        params["seed"] = seed % _SEEDS
    stop = _stop(fields)
    if stop:
        params["stop"] = stop
    top = fields.whole("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top is not None and not logprobs:
        raise refused("top_logprobs", 'it is allowed with "logprobs": true alone')
    if logprobs:
        params["top_logprobs"] = top or 0
    return params


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.members.get("stop")
    given = [value] if isinstance(value, str) else fields.items("stop", MAX_STOP_STRINGS) or ()
    texts = []
    for text in given:
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARS:
            raise refused("stop", f"texts of 1 to {MAX_STOP_CHARS} characters are needed")
        texts.append(text)
    return tuple(texts)


def _constraint(fields: Fields) -> ConstraintSpec | None:
    form = fields.fields("response_format")
    if form is None:
        return None
    kind = form.text("type")
    if kind == "json_schema":
        return _schema(form)
    form.only(frozenset(("type",)))
    if kind not in ("text", "json_object"):
        raise form.wrong("type", kind, "text, json_object or json_schema")
    return ConstraintSpec("json") if kind == "json_object" else None


def _schema(form: Fields) -> ConstraintSpec:
    form.only(frozenset(("type", "json_schema")))
    inner = form.fields("json_schema")
    if inner is None:
        raise refused("response_format.json_schema", "it is missing", code="missing_parameter")
    inner.only(frozenset(("name", "description", "schema", "strict")))
    if not inner.text("name", most=64):
        raise refused("response_format.json_schema.name", "it is missing", code="missing_parameter")
    inner.text("description", most=65_536)
    inner.flag("strict")  # every answer is held to its schema, strict or not
    schema = inner.members.get("schema")
    if schema is None:
        return ConstraintSpec("json")
    if not isinstance(schema, dict):
        raise inner.wrong("schema", schema, "an object")
    return ConstraintSpec("json_schema", schema=schema)
