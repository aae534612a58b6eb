"""What the endpoints share: the engine of the moment, the model's name, its template, the queue's bound."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request

from corral_server.channel import Message
from corral_server.decoding import Decoded, MediaError, MediaItem
from corral_server.dialects.formats import Thinking
from corral_server.dialects.grammars import content_grammar
from corral_server.engine_client import EngineClient
from corral_server.kept_responses import KeptResponses
from corral_server.openai import fields
from corral_server.openai.answers import unless_gone
from corral_server.openai.errors import ApiError, invalid
from corral_server.openai.native_adapters import Adapters
from corral_server.openai.presets import Presets
from corral_server.rendering import CHATML, TemplateError, template_variables
from corral_server.spec import Preset
from corral_server.supervisor import Supervisor

_QUEUE_PER_SLOT = 16
_MAX_BODY = 64 << 20


class Service:
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.lora = Adapters(supervisor.spec.engine.adapters)
        self._presets = Presets(supervisor.spec.engine.presets)

    @property
    def kept(self) -> KeptResponses:
        """Responses that may be asked for again."""
        return self._supervisor.responses

    @property
    def life(self) -> Any:
        return self._supervisor.life

    def preset(self, request: Request, body: Mapping[str, Any]) -> Preset | None:
        return self._presets.chosen(request.headers.get("x-corral-adapter", ""), body)

    def defaults(self, preset: Preset | None = None) -> Mapping[str, Any]:
        """What a request that does not say gets."""
        return {**self.model.get("sampling", {}), **self._supervisor.spec.engine.sampling, **(preset.sampling if preset else {})}

    @property
    def model(self) -> dict[str, Any]:
        return self._supervisor.life.model

    @property
    def vocabulary(self) -> int:
        """How many tokens the model has; 0 while it is not loaded."""
        return int(self.model.get("vocabulary", 0))

    @property
    def able(self) -> Mapping[str, Any]:
        """What the loaded model's projector takes; empty without one."""
        return dict(self.model.get("media") or {})

    @property
    def path(self) -> str:
        return str(self._supervisor.life.file.get("path", "")) if self._supervisor.life.file else ""

    @property
    def fim(self) -> dict[str, int]:
        """The model's own tokens for filling in the middle; -1 for each that it has not."""
        return dict(self.model.get("fim") or {})

    @property
    def pooling(self) -> str:
        return str(self.model.get("pooling", ""))

    def served_name(self, request: Request, body: Mapping[str, Any] | None = None) -> str:
        """The name that answers repeat: what the gateway was asked for, else what the client wrote."""
        spec = self._supervisor.spec
        asked = (body or {}).get("model")
        return request.headers.get("x-corral-served-name") or (asked if isinstance(asked, str) and asked else "") or spec.served_name or spec.name

    def engine(self, answers: int = 1) -> EngineClient:
        """The engine, if it may take that many more answers."""
        engine = self._supervisor.engine
        if engine is None:
            raise ApiError(503, "not_loaded", "the model is not loaded", headers={"retry-after": "1"})
        slots = int(self.model.get("slots", 1))
        if engine.waiting + answers > slots * (_QUEUE_PER_SLOT + 1) and engine.waiting:
            raise ApiError(
                429, "overloaded", f"{engine.waiting} answers are running or queued for {slots} slots; try again later", headers={"retry-after": "1"}
            )
        return engine

    def generator(self, answers: int = 1) -> EngineClient:
        if self.pooling:
            raise ApiError(400, "unsupported_endpoint", f"this model is served for embeddings (pooling {self.pooling}); it generates no text")
        return self.engine(answers)

    async def body(self, request: Request) -> bytes:
        raw = bytearray()
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > _MAX_BODY:
                raise ApiError(413, "too_large", f"the body is longer than {_MAX_BODY} bytes")
        return bytes(raw)

    async def ask(self, request: Request, kind: str, order: dict[str, Any]) -> Message:
        """The one event with which the engine answers a question."""
        stream = self.engine().submit(kind, order)
        try:
            return await unless_gone(request, stream.last())
        finally:
            stream.close()

    async def decoded(self, request: Request, items: list[MediaItem]) -> Decoded | None:
        """The images and audio of a request, ready for the engine."""
        if not items:
            return None
        waiting, slots = self._supervisor.decoding.waiting, int(self.model.get("slots", 1))
        if waiting >= slots * _QUEUE_PER_SLOT:
            raise ApiError(429, "overloaded", f"{waiting} requests with images or audio wait for {slots} slots", headers={"retry-after": "1"})
        try:
            return await unless_gone(request, self._supervisor.decoding.decode(items, int(self.able.get("sampleRate", 0))))
        except MediaError as error:
            raise invalid(error.where, str(error)) from None

    async def constraint(self, body: Mapping[str, Any], thinking: Thinking | None = None) -> dict[str, Any]:
        """The grammar that a request asks for, in any of the ways to ask: `response_format`, or llama.cpp's `grammar` and `json_schema`."""
        form = fields.mapping(body, "response_format")
        kind = fields.choice(form, "type", ("text", "json_object", "json_schema"), "text", within="response_format") if form else "text"
        schema: Any = None
        param = "response_format"
        if kind == "json_schema":
            if form.get("json_schema") is None and "schema" not in form:
                at = "response_format.json_schema"
                raise invalid(at, f"{at} is missing; it has to be an object with name and schema")
            described = fields.mapping(form, "json_schema") or form
            fields.flag(described, "strict", within="response_format.json_schema")
            schema = described.get("schema")
            if described.get("name") is not None and not isinstance(described["name"], str):
                at = "response_format.json_schema.name"
                raise invalid(at, f"{at} is {fields.shown(described['name'])}; it has to be a string")
            if not isinstance(schema, (dict, bool)):
                raise invalid("response_format.json_schema.schema", "response_format.json_schema.schema is missing; it has to be a JSON schema")
        elif kind == "json_object":
            schema = form.get("schema") or {"type": "object"}
        elif body.get("json_schema") is not None:
            schema, param = body["json_schema"], "json_schema"
        grammar = fields.text(body, "grammar")
        if grammar and schema is not None:
            raise invalid("grammar", "grammar and a JSON schema were both given; only one of them can hold")
        if grammar:
            return {"grammar": grammar, "grammar_param": "grammar"}
        if schema is None:
            return {}
        return {"grammar": content_grammar(await self.rules([schema], param), "s0-root", thinking), "grammar_param": param}

    async def rules(self, schemas: list[Any], param: str, names: Sequence[str] = (), *, loose: bool = False) -> str:
        """Grammar rules of JSON schemas; `names` tell several apart in an error. `loose`: patterns that no grammar can hold are left out."""
        try:
            return await self._supervisor.rendering.rules(schemas, names, loose=loose)
        except TemplateError as error:
            raise invalid(param, str(error)) from None

    def adapters(self, request: Request, body: Mapping[str, Any]) -> dict[str, Any]:
        """What a job has to say about adapters; a request for one that is not here must not be answered by the bare model."""
        preset = self.preset(request, body)
        chosen = self.lora.chosen(preset.adapter if preset else request.headers.get("x-corral-adapter", ""), body)
        return {"adapters": chosen} if chosen else {}

    @property
    def tells_thoughts(self) -> bool:
        return self._supervisor.spec.engine.reasoning != "None"

    def template(self, *, with_tools: bool) -> str:
        """The template in force: the specification's, else the file's, else ChatML."""
        templates = self.model.get("templates") or {}
        found = self._supervisor.spec.engine.chat_template or (templates.get("tool_use") if with_tools else None) or templates.get("") or CHATML
        return str(found)

    async def render(self, messages: list[dict[str, Any]], tools: list[Any] | None, extra: Mapping[str, Any], *, with_tools: bool = False) -> str:
        """The prompt that the model's own template makes of the messages."""
        variables = template_variables(messages, tools, extra, bos=str(self.model.get("bos", "")), eos=str(self.model.get("eos", "")))
        try:
            prompt = await self._supervisor.rendering.render(self.template(with_tools=with_tools or bool(tools)), variables)
        except TemplateError as error:
            raise ApiError(400, "template_failed", str(error), "messages") from None
        # The tokeniser adds the token itself; a template that writes it too would double it.
        bos = str(self.model.get("bos", ""))
        return prompt[len(bos) :] if bos and self.model.get("addBos") and prompt.startswith(bos) else prompt

    @property
    def template_stops(self) -> list[str]:
        has_template = self._supervisor.spec.engine.chat_template or (self.model.get("templates") or {}).get("")
        return [] if has_template else ["<|im_end|>"]
