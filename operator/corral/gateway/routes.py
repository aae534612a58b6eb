"""Which paths the gateway knows, what it does with each, and in which shape each tells of errors. A table and nothing more."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from corral.gateway.kept_responses import pattern_of


class Carries(Enum):
    """Where the model's name is."""

    JSON = auto()
    MULTIPART = auto()
    QUERY = auto()
    PATH = auto()
    """Nowhere: the path has the id of a response, and that says which pod keeps it."""


class Shape(Enum):
    """How errors look."""

    OPENAI = auto()
    ANTHROPIC = auto()
    RESPONSES = auto()
    """OpenAI's, but for errors inside a stream."""


@dataclass(frozen=True, slots=True)
class Proxied:
    """A path that goes to a model's pod."""

    carries: Carries
    shape: Shape = Shape.OPENAI
    called: bytes = b""
    """The path's name at the pod, where that is another."""
    refers: bool = False
    """Its body may name what a pod keeps."""


_JSON = Proxied(Carries.JSON)
_QUERY = Proxied(Carries.QUERY)
_MULTIPART = Proxied(Carries.MULTIPART)
_ANTHROPIC = Proxied(Carries.JSON, Shape.ANTHROPIC)
_KEPT = Proxied(Carries.PATH, Shape.RESPONSES)

PROXIED: dict[tuple[str, str], Proxied] = {
    ("POST", "/v1/chat/completions"): _JSON,
    ("POST", "/chat/completions"): Proxied(Carries.JSON, called=b"/v1/chat/completions"),
    ("POST", "/chat/completions/input_tokens"): Proxied(Carries.JSON, called=b"/v1/chat/completions/input_tokens"),
    ("POST", "/v1/chat/completions/input_tokens"): _JSON,
    ("POST", "/v1/chat/completions/control"): _JSON,
    ("POST", "/v1/completions"): _JSON,
    ("POST", "/v1/embeddings"): _JSON,
    ("POST", "/v1/rerank"): _JSON,
    ("POST", "/v1/reranking"): _JSON,
    ("POST", "/rerank"): _JSON,
    ("POST", "/reranking"): _JSON,
    ("POST", "/v1/responses"): Proxied(Carries.JSON, Shape.RESPONSES, refers=True),
    ("POST", "/v1/responses/input_tokens"): Proxied(Carries.JSON, refers=True),
    ("POST", "/responses"): Proxied(Carries.JSON, Shape.RESPONSES, b"/v1/responses", refers=True),
    ("POST", "/responses/input_tokens"): Proxied(Carries.JSON, called=b"/v1/responses/input_tokens", refers=True),
    ("POST", "/v1/responses/compact"): Proxied(Carries.JSON, refers=True),
    ("POST", "/responses/compact"): Proxied(Carries.JSON, called=b"/v1/responses/compact", refers=True),
    ("GET", "/v1/responses/{id}"): _KEPT,
    ("DELETE", "/v1/responses/{id}"): _KEPT,
    ("GET", "/v1/responses/{id}/input_items"): _KEPT,
    ("POST", "/v1/responses/{id}/cancel"): _KEPT,
    ("POST", "/v1/messages"): _ANTHROPIC,
    ("POST", "/v1/messages/count_tokens"): _ANTHROPIC,
    ("POST", "/v1/audio/transcriptions"): _MULTIPART,
    ("POST", "/v1/audio/translations"): _MULTIPART,
    ("POST", "/audio/transcriptions"): Proxied(Carries.MULTIPART, called=b"/v1/audio/transcriptions"),
    ("POST", "/completion"): _JSON,
    ("POST", "/completions"): _JSON,
    ("POST", "/infill"): _JSON,
    ("POST", "/embedding"): _JSON,
    ("POST", "/embeddings"): _JSON,
    ("POST", "/tokenize"): _JSON,
    ("POST", "/detokenize"): _JSON,
    ("POST", "/apply-template"): _JSON,
    ("GET", "/props"): _QUERY,
    ("GET", "/slots"): _QUERY,
    ("GET", "/lora-adapters"): _QUERY,
    ("POST", "/props"): _JSON,
    ("POST", "/lora-adapters"): _JSON,
}
_METHODS: dict[str, list[str]] = {}
for _method, _path in PROXIED:
    _METHODS.setdefault(_path, []).append(_method)


def proxied(method: str, path: str) -> Proxied | None:
    route = PROXIED.get((method, path))
    if route is None and method == "POST" and path.startswith("/slots/") and path[7:].isdigit():
        return _JSON
    if route is None and path not in _METHODS:
        return PROXIED.get((method, pattern_of(path)))
    return route


def allowed_methods(path: str) -> list[str]:
    """The methods that a proxied path takes; empty for a path that is not proxied."""
    return _METHODS.get(path) or _METHODS.get(pattern_of(path), [])


def shape_of(path: str) -> Shape:
    """The shape for errors that come before the route is known to match."""
    if path.startswith("/v1/messages"):
        return Shape.ANTHROPIC
    return Shape.RESPONSES if path in ("/v1/responses", "/responses") else Shape.OPENAI
