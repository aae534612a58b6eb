"""The inference port's application: routes to endpoints, errors to OpenAI's shape. Admission happened before, in `gate`."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from corral_server.anthropic.messages import count_tokens, error_shape, messages
from corral_server.control_api import ready
from corral_server.engine_client import EngineError
from corral_server.gate import Gate
from corral_server.lifecycle import State
from corral_server.metrics import CONTENT_TYPE, exposition
from corral_server.openai import stored_responses
from corral_server.openai.answers import ClientGoneError, json_response
from corral_server.openai.chat import chat_completions, count_input
from corral_server.openai.completions import completions
from corral_server.openai.embeddings import embeddings
from corral_server.openai.errors import ApiError, error_body
from corral_server.openai.model_list import model_list, model_object
from corral_server.openai.native import adapters, apply_template, detokenize, embedding, properties, set_adapters, tokenize
from corral_server.openai.native_completion import completion, infill
from corral_server.openai.native_slots import slot_action, slot_list
from corral_server.openai.rerank import rerank
from corral_server.openai.responses import compact, responses
from corral_server.openai.responses import count_input as count_response_input
from corral_server.openai.service import Service
from corral_server.openai.transcriptions import transcriptions
from corral_server.openapi import NAMED_MODEL, NAMED_RESPONSE, PLAIN, described
from corral_server.supervisor import Supervisor
from corral_server.tokens import TokenVerifier

log = logging.getLogger("corral.server")
Endpoint = Callable[[Service, Request], Awaitable[Response]]


def make_inference_app(supervisor: Supervisor, verifier: TokenVerifier) -> ASGIApp:
    app = FastAPI(title="corral server", docs_url=None, redoc_url=None)
    app.state.quiet_seconds = supervisor.settings.quiet_seconds
    service = Service(supervisor)
    started = int(time.time())

    def post(path: str, endpoint: Endpoint) -> None:
        async def route(request: Request) -> Response:
            return await endpoint(service, request)

        app.add_api_route(path, route, methods=["POST"], name=path, openapi_extra=described(path))

    def named(method: str, path: str, endpoint: Callable[[Service, Request, str], Awaitable[Response]]) -> None:
        async def route(request: Request, response_id: str) -> Response:
            return await endpoint(service, request, response_id)

        app.add_api_route(path, route, methods=[method], name=f"{method} {path}", openapi_extra=NAMED_RESPONSE)

    for prefix in ("/v1", ""):
        # llama.cpp answers these with and without the version.
        post(f"{prefix}/chat/completions", chat_completions)
        post(f"{prefix}/responses", responses)
        post(f"{prefix}/responses/compact", compact)
        post(f"{prefix}/audio/transcriptions", transcriptions)
        post(f"{prefix}/chat/completions/input_tokens", count_input)
        post(f"{prefix}/responses/input_tokens", count_response_input)
        for method, path, stored in (
            ("GET", "", stored_responses.retrieve),
            ("DELETE", "", stored_responses.delete),
            ("GET", "/input_items", stored_responses.input_items),
            ("POST", "/cancel", stored_responses.cancel),
        ):
            named(method, f"{prefix}/responses/{{response_id}}{path}", stored)
    post("/v1/messages", messages)
    post("/v1/messages/count_tokens", count_tokens)
    post("/v1/completions", completions)
    post("/v1/embeddings", embeddings)
    for path in ("/v1/rerank", "/rerank", "/v1/reranking", "/reranking"):
        post(path, rerank)
    post("/tokenize", tokenize)
    post("/detokenize", detokenize)
    post("/apply-template", apply_template)
    post("/completion", completion)
    post("/completions", completion)
    post("/infill", infill)
    post("/embedding", embedding)
    post("/embeddings", embedding)
    post("/lora-adapters", set_adapters)

    @app.get("/lora-adapters")
    async def lora_adapters(request: Request) -> Response:
        return await adapters(service, request)

    @app.get("/v1/models")
    @app.get("/models")
    async def models(request: Request) -> Response:
        return json_response(model_list(service, request, started))

    @app.get("/v1/models/{name:path}", openapi_extra=NAMED_MODEL)
    async def model(request: Request, name: str) -> Response:
        if name not in (service.served_name(request), supervisor.spec.served_name, supervisor.spec.name):
            raise ApiError(404, "model_not_found", f"there is no model {name!r} here", "model")
        return json_response(model_object(service, name, started))

    @app.get("/props")
    async def props(request: Request) -> Response:
        return json_response(properties(service, request))

    @app.get("/metrics", response_class=Response, openapi_extra=PLAIN)
    async def metrics() -> Response:
        engine = supervisor.engine
        text = exposition(supervisor.life, supervisor.totals, processing=engine.active if engine else 0, queued=supervisor.queued)
        return Response(text, media_type=CONTENT_TYPE, headers={"process-start-time-unix": str(started)})

    @app.get("/slots")
    async def slots(request: Request) -> Response:
        return await slot_list(service, request)

    @app.post("/slots/{slot}", openapi_extra=described("/slots/{slot}"))
    async def act_on_slot(request: Request, slot: str) -> Response:
        return await slot_action(service, request, slot)

    @app.get("/health")
    @app.get("/v1/health")
    async def health() -> Response:
        if supervisor.life.state is State.LOADED:
            return json_response({"status": "ok"})
        return json_response(error_body(503, "unavailable_error", f"the model is {supervisor.life.state}"), 503)

    @app.get("/healthz")
    async def healthz() -> Response:
        return json_response({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        fine = ready(supervisor)
        return json_response({"ready": fine, "state": supervisor.life.state.value}, 200 if fine else 503)

    def refusal(
        request: Request,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        details: dict[str, Any] | None = None,
    ) -> Response:
        """An error in the shape of the API that was asked."""
        if request.url.path.startswith("/v1/messages"):
            return json_response(error_shape(status, message), status, headers)
        return json_response(error_body(status, code, message, param, details), status, headers)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)  # noqa: S101  registered for this class
        return refusal(request, error.status, error.code, str(error), error.param, error.headers)

    @app.exception_handler(EngineError)
    async def engine_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, EngineError)  # noqa: S101  registered for this class
        headers = {"x-should-retry": "false"} if not error.retry else {"retry-after": "1"} if error.status == 503 else {}
        return refusal(request, error.status, error.code, str(error), error.param, headers, error.details)

    @app.exception_handler(ClientGoneError)
    async def client_gone(_: Request, __: Exception) -> Response:
        # Nobody reads this; it only ends the exchange.
        return Response(status_code=499)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101  registered for this class
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        text = f"{request.method} {request.url.path}: {error.detail}"
        return refusal(request, error.status_code, code, text, headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("unexpected: %s", type(error).__name__)
        text = "the server failed unexpectedly; its log says more"
        return refusal(request, 500, "internal_error", text, headers={"x-should-retry": "false"})

    return Gate(app, supervisor, verifier)
