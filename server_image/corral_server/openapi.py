"""What the inference port's OpenAPI document says of each route: bodies, answers, errors. Data only; what is really checked is in the endpoints.

Unknown fields are allowed everywhere, as the endpoints allow them.
"""

from typing import Any

Schema = dict[str, Any]
_MOST = 1 << 31
_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": ["boolean", "null"]}
_OBJECT: Schema = {"type": "object"}
_MAYBE_TEXT: Schema = {"type": ["string", "null"]}
_TOKEN: Schema = {"type": "integer", "minimum": 0, "maximum": _MOST - 1}


def _whole(low: int, high: int = _MOST) -> Schema:
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


def _number(low: float, high: float) -> Schema:
    return {"type": ["number", "null"], "minimum": low, "maximum": high}


def _words(*words: str) -> Schema:
    return {"enum": [*words, None]}


def _list(items: Schema, *, least: int = 1, most: int | None = None) -> Schema:
    return {"type": "array", "items": items, "minItems": least, **({"maxItems": most} if most else {})}


def _body(*required: str, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


_PART = {
    "type": "object",
    "properties": {"type": {"enum": ["text", "input_text", "output_text"]}, "text": _TEXT},
    "required": ["type", "text"],
}
_CONTENT: Schema = {"anyOf": [_TEXT, _list(_PART)]}
_STOP: Schema = {"anyOf": [_TEXT, _list(_TEXT, least=0, most=64), {"type": "null"}]}
_METADATA: Schema = {"type": ["object", "null"], "additionalProperties": {"type": "string", "maxLength": 512}, "maxProperties": 16}
_METADATA["propertyNames"] = {"maxLength": 64}
_NAME: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,128}$"}
_PARAMETERS: Schema = {"enum": [{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}, {"type": "object"}]}
"""Two of the schemas there are: what a generator makes up is hardly ever one."""
_FUNCTION = _body("name", name=_NAME, description=_MAYBE_TEXT, parameters=_PARAMETERS, strict=_FLAG)
_CUSTOM = {"name": _NAME, "description": _MAYBE_TEXT}


def _tools(*kinds: Schema) -> Schema:
    return {"type": ["array", "null"], "maxItems": 128, "items": {"anyOf": list(kinds)}}


_TOOLS = _tools(
    _body("type", "function", type={"const": "function"}, function=_FUNCTION),
    _body("type", "custom", type={"const": "custom"}, custom=_body("name", **_CUSTOM)),
)
_MESSAGE = _body("role", "content", role={"enum": ["system", "developer", "user", "assistant"]}, content=_CONTENT, name=_MAYBE_TEXT)
_FORMAT: Schema = {
    "anyOf": [
        {"type": "null"},
        _body("type", type={"enum": ["text", "json_object"]}),
        _body("type", "json_schema", type={"const": "json_schema"}, json_schema=_body("schema", name=_MAYBE_TEXT, schema=_PARAMETERS)),
    ]
}
_SAMPLING = {
    "temperature": _number(0, 2), "top_p": _number(0, 1), "top_k": _whole(-1), "min_p": _number(0, 1), "seed": {"type": ["integer", "null"]},
    "frequency_penalty": _number(-2, 2), "presence_penalty": _number(-2, 2), "repeat_penalty": _number(0.01, 10), "stop": _STOP,
    "cache_prompt": _FLAG, "ignore_eos": _FLAG,
}  # fmt: skip
_SAMPLING["seed"].update({"minimum": -(1 << 63), "maximum": (1 << 63) - 1})
_SHARED = {
    "model": _MAYBE_TEXT, "user": _MAYBE_TEXT, "safety_identifier": _MAYBE_TEXT, "prompt_cache_key": _MAYBE_TEXT, "store": _FLAG,
    "metadata": _METADATA, "service_tier": _words("auto", "default", "flex", "scale", "priority"),
}  # fmt: skip
_EFFORT = _words("none", "minimal", "low", "medium", "high", "xhigh", "max")
_CHAT_PROMPT = {
    "messages": _list(_MESSAGE), "tools": _TOOLS, "reasoning_effort": _EFFORT, "chat_template_kwargs": {"type": ["object", "null"]},
    "parallel_tool_calls": _FLAG, "tool_choice": _words("none", "auto"),
}  # fmt: skip
_CHAT = _body(
    "messages", **_SHARED, **_SAMPLING, **_CHAT_PROMPT, n=_whole(1, 128), stream=_FLAG, logprobs=_FLAG, max_tokens=_whole(1),
    max_completion_tokens=_whole(1), response_format=_FORMAT, verbosity=_words("low", "medium", "high"), prediction={"type": ["object", "null"]},
    web_search_options={"type": ["object", "null"]}, grammar=_MAYBE_TEXT,
)  # fmt: skip
_PROMPT: Schema = {"anyOf": [_TEXT, _list(_TEXT, most=8), _list(_TOKEN), _list(_list(_TOKEN), most=8)]}
_COMPLETION = _body(
    "prompt", **_SAMPLING, model=_MAYBE_TEXT, prompt=_PROMPT, max_tokens=_whole(-1), n=_whole(1, 128), best_of=_whole(1, 128), echo=_FLAG,
    logprobs=_whole(0, 20), stream=_FLAG, suffix=_MAYBE_TEXT, user=_MAYBE_TEXT,
)  # fmt: skip
_INPUT_MESSAGE = _body("role", "content", type={"const": "message"}, role={"enum": ["system", "developer", "user", "assistant"]}, content=_CONTENT)
_RESPONSES_PROMPT = {
    "input": {"anyOf": [_TEXT, _list(_INPUT_MESSAGE)]}, "instructions": _MAYBE_TEXT,
    "tools": _tools(
        _body("type", "name", type={"const": "function"}, name=_NAME, description=_MAYBE_TEXT, parameters=_PARAMETERS, strict=_FLAG),
        _body("type", "name", type={"const": "custom"}, **_CUSTOM),
        _body("type", type={"enum": ["web_search", "image_generation", "tool_search"]}),
    ),
    "tool_choice": _words("none", "auto"), "parallel_tool_calls": _FLAG,
    "reasoning": {"type": ["object", "null"], "properties": {"effort": _EFFORT, "summary": _words("auto", "concise", "detailed")}},
}  # fmt: skip
_RESPONSES = _body(
    "input", **_SHARED, **_RESPONSES_PROMPT, temperature=_number(0, 2), top_p=_number(0, 1), max_output_tokens=_whole(1), stream=_FLAG,
    top_logprobs=_whole(0, 20), truncation=_words("auto", "disabled"), max_tool_calls=_whole(1),
    text={"type": ["object", "null"], "properties": {"verbosity": _words("low", "medium", "high")}},
)  # fmt: skip
_BLOCKS: Schema = {"anyOf": [_TEXT, _list(_body("type", "text", type={"const": "text"}, text=_TEXT))]}
_ANTHROPIC_PROMPT = {
    "messages": _list(_body("role", "content", role={"enum": ["user", "assistant"]}, content=_BLOCKS), least=0), "system": _BLOCKS,
    "tools": _tools(
        _body("name", "input_schema", name=_NAME, description=_MAYBE_TEXT, input_schema=_PARAMETERS),
        _body("type", "name", type={"enum": ["bash_20250124", "text_editor_20250728", "memory_20250818"]}, name=_NAME),
    ),
    "thinking": _body("type", type={"enum": ["enabled", "adaptive", "disabled"]}),
}  # fmt: skip
_MESSAGES = _body(
    "messages", "max_tokens", **_ANTHROPIC_PROMPT, model=_MAYBE_TEXT, max_tokens={**_whole(1), "type": "integer"}, temperature=_number(0, 2),
    top_p=_number(0, 1), top_k=_whole(-1), stop_sequences=_STOP, stream=_FLAG,
)  # fmt: skip
_EMBEDDINGS = _body(
    "input", model=_MAYBE_TEXT, dimensions=_whole(1, 1 << 20), encoding_format=_words("float", "base64"), user=_MAYBE_TEXT,
    input={"anyOf": [_TEXT, _OBJECT, _list({"anyOf": [_TEXT, _OBJECT, _TOKEN, _list({"anyOf": [_TEXT, _TOKEN]})]}, most=2048)]},
)  # fmt: skip
_RERANK = _body(
    "query", "documents", model=_MAYBE_TEXT, query={"type": "string", "minLength": 1}, top_n=_whole(1, 2048), return_documents=_FLAG,
    documents=_list({"type": "string", "minLength": 1}, most=2048),
)  # fmt: skip
_NATIVE = {**_SAMPLING, "temperature": _number(0, 1000), "n_predict": _whole(-1), "n_probs": _whole(0, 20), "stream": _FLAG, "grammar": _MAYBE_TEXT}

REQUESTS: dict[str, Schema] = {
    "/v1/chat/completions": _CHAT,
    "/v1/chat/completions/input_tokens": _body("messages", **_CHAT_PROMPT),
    "/v1/completions": _COMPLETION,
    "/v1/responses": _RESPONSES,
    "/v1/responses/input_tokens": _body("input", **_RESPONSES_PROMPT),
    "/v1/responses/compact": _body("input", model=_MAYBE_TEXT, input=_RESPONSES_PROMPT["input"], instructions=_MAYBE_TEXT),
    "/v1/messages": _MESSAGES,
    "/v1/messages/count_tokens": _body("messages", **_ANTHROPIC_PROMPT),
    "/v1/embeddings": _EMBEDDINGS,
    "/v1/rerank": _RERANK,
    "/tokenize": _body(content=_TEXT, add_special=_FLAG, parse_special=_FLAG, with_pieces=_FLAG),
    "/detokenize": _body(tokens=_list(_TOKEN, least=0)),
    "/apply-template": _body("messages", **_CHAT_PROMPT),
    "/completion": _body("prompt", **_NATIVE, prompt={"anyOf": [_TEXT, _list({"anyOf": [_TEXT, _TOKEN]})]}),
    "/infill": _body(**_NATIVE, input_prefix=_MAYBE_TEXT, input_suffix=_MAYBE_TEXT, prompt=_MAYBE_TEXT),
    "/embedding": _body(content=_TEXT),
    "/lora-adapters": {"type": "array", "items": _body("id", "scale", id=_TOKEN, scale={"type": "number"})},
}
FORMS: dict[str, Schema] = {
    "/v1/audio/transcriptions": _body(
        "file", file={"type": "string", "format": "binary"}, model=_TEXT, language=_TEXT, prompt=_TEXT, temperature={"type": "number"},
        response_format={"enum": ["json", "text", "verbose_json"]}, stream={"enum": ["true", "false"]},
    ),
}  # fmt: skip
_SAME = {
    "/audio/transcriptions": "/v1/audio/transcriptions",
    "/chat/completions": "/v1/chat/completions", "/responses": "/v1/responses", "/rerank": "/v1/rerank", "/reranking": "/v1/rerank",
    "/v1/reranking": "/v1/rerank", "/completions": "/completion", "/embeddings": "/embedding",
    "/chat/completions/input_tokens": "/v1/chat/completions/input_tokens", "/responses/input_tokens": "/v1/responses/input_tokens",
    "/responses/compact": "/v1/responses/compact",
}  # fmt: skip
_STREAMS = ("/v1/audio/transcriptions", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/completion", "/infill")
_ANSWERS: dict[str, Schema] = {
    "/v1/chat/completions": _body("id", "object", "created", "model", "choices", "usage", object={"const": "chat.completion"}),
    "/v1/completions": _body("id", "object", "created", "model", "choices", "usage", object={"const": "text_completion"}),
    "/v1/responses": _body("id", "object", "created_at", "status", "output", object={"const": "response"}),
    "/v1/messages": _body("id", "type", "role", "content", "model", "stop_reason", "stop_sequence", "usage", type={"const": "message"}),
    "/v1/embeddings": _body("object", "data", "model", "usage", object={"const": "list"}),
}
_ERROR = _body(
    "error", error=_body("message", "type", "param", "code", message=_TEXT, type=_TEXT, param=_MAYBE_TEXT, code=_MAYBE_TEXT)
)  # fmt: skip
_ANTHROPIC_ERROR = _body("type", "error", type={"const": "error"}, error=_body("type", "message", type=_TEXT, message=_TEXT))
_ERRORS = {
    "400": "The request is wrong; `param` names the field", "401": "No valid token", "404": "No such adapter", "413": "The body is too long",
    "429": "Too many requests are queued", "500": "The engine failed with this request", "503": "The model is not being served here",
}  # fmt: skip


def described(path: str) -> dict[str, Any]:
    """What to add to the document of a POST route."""
    known = _SAME.get(path, path)
    error = _ANTHROPIC_ERROR if known.startswith("/v1/messages") else _ERROR
    content: dict[str, Any] = {"application/json": {"schema": _ANSWERS.get(known, {})}}
    if known in _STREAMS:
        content["text/event-stream"] = {"schema": {}}
    answers: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
    answers.update({status: {"description": why, "content": {"application/json": {"schema": error}}} for status, why in _ERRORS.items()})
    if known in FORMS:
        content["text/plain"] = {"schema": _TEXT}
        return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORMS[known]}}}, "responses": answers}
    if known not in REQUESTS:
        return {"responses": answers}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": REQUESTS[known]}}}, "responses": answers}


PLAIN: dict[str, Any] = {"responses": {"200": {"description": "Prometheus' text format", "content": {"text/plain": {"schema": _TEXT}}}}}
NAMED_RESPONSE: dict[str, Any] = {
    "responses": {
        status: {"description": why, "content": {"application/json": {"schema": _ERROR}}}
        for status, why in (("400", "The request is wrong; `param` names the field"), ("404", "No such response is kept here"))
    },
}
NAMED_MODEL: dict[str, Any] = {
    "responses": {"404": {"description": "No such model", "content": {"application/json": {"schema": _ERROR}}}},
}
