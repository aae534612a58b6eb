"""Log probabilities in the two shapes of the two endpoints."""

from typing import Any


def chat_logprobs(entries: list[Any], top: int) -> dict[str, Any]:
    """Entries are [[token, bytes, logprob], [the same for each alternative]]."""
    return {
        "content": [{**_one(chosen), "top_logprobs": [_one(other) for other in others[:top]]} for chosen, others in entries],
        "refusal": None,
    }


def _one(entry: list[Any]) -> dict[str, Any]:
    _, piece, logprob = entry
    return {"token": bytes(piece).decode("utf-8", "replace"), "logprob": logprob, "bytes": piece}


def completion_logprobs(entries: list[Any], top: int, offset: int = 0) -> dict[str, Any]:
    """As above; a prompt's first token has neither a log probability nor alternatives."""
    tokens: list[str] = []
    values: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for chosen, others in entries:
        piece = bytes(chosen[1]).decode("utf-8", "replace")
        tokens.append(piece)
        values.append(chosen[2])
        tops.append(None if chosen[2] is None else {bytes(o[1]).decode("utf-8", "replace"): o[2] for o in others[:top]})
        offsets.append(offset)
        offset += len(piece)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
