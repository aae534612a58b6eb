"""The response object of the responses API: every field that its specifications require, with what was really used. Pure but for the clock."""

import time
from collections.abc import Sequence
from typing import Any

from corral_server.openai import fields
from corral_server.openai.answers import Head, Usage

_DEFAULTS = {"temperature": 0.8, "top_p": 0.95, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""The engine's own, where neither the request nor the model's settings say otherwise."""


def begun(head: Head, body: dict[str, Any], sampling: dict[str, Any], tools: Sequence[dict[str, Any]], *, parallel: bool) -> dict[str, Any]:
    """The object as a stream's first events show it."""
    reasoning = fields.mapping(body, "reasoning")
    return {
        "id": head.id, "object": "response", "created_at": head.created, "completed_at": None, "status": "in_progress", "background": False,
        "error": None, "incomplete_details": None, "instructions": body.get("instructions"), "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": body.get("max_tool_calls"), "model": head.model, "output": [], "parallel_tool_calls": parallel,
        "previous_response_id": body.get("previous_response_id"), "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": body.get("safety_identifier"), "service_tier": "default", "store": fields.flag(body, "store", default=True),
        "text": _text(body), "tool_choice": body.get("tool_choice") or "auto", "tools": [_tool(t) for t in tools],
        "top_logprobs": body.get("top_logprobs") or 0, "truncation": body.get("truncation") or "disabled", "usage": None, "user": body.get("user"),
        "metadata": fields.mapping(body, "metadata"), **{name: sampling.get(name, value) for name, value in _DEFAULTS.items()},
    }  # fmt: skip


def ended(base: dict[str, Any], reason: str, output: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
    """The object of an answer that came to its end, or to its limit."""
    ending: dict[str, Any] = {"status": "completed", "completed_at": int(time.time())}
    if reason == "length":
        ending = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    return {**base, **ending, "output": output, "usage": usage_of(usage)}


def failed(base: dict[str, Any], message: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    return {**base, "status": "failed", "error": {"code": "server_error", "message": message}, "output": output}


def _text(body: dict[str, Any]) -> dict[str, Any]:
    text = fields.mapping(body, "text")
    form = dict(text.get("format") or {"type": "text"})
    if form.get("type") == "json_schema":
        form = {"description": None, "strict": False, **form}
    return {"format": form, "verbosity": text.get("verbosity") or "medium"}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    given = {k: v for k, v in tool.items() if v is not None}
    if tool["type"] != "function":
        return given
    return {"type": "function", "name": tool["name"], "description": None, "parameters": None, "strict": True, **given}


def usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt, "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion, "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }  # fmt: skip
