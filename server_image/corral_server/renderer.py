"""The process that renders chat templates.

A template comes with a model file and may loop for ever or build gigabytes, so it runs where it can be killed.

Forked from the zygote; its address space is limited, its time is limited by the supervisor.
"""

import re
import resource
import socket
from datetime import UTC, datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from corral_server.channel import BlockingChannel
from corral_server.schema_counts import UnusableSchemaError
from corral_server.schemas import schema_rules
from corral_server.template_needs import Needs, fitted, needs_of

_ROOM = 512 << 20
_AS_TEXT, _AS_LIST = re.compile(r"\bfunctions\b"), re.compile(r"\btools\b")


class TemplateRefusedError(Exception):
    """The template itself said no, with raise_exception."""


def _raise(message: str) -> NoReturn:
    raise TemplateRefusedError(message)


def _tojson(value: Any, *, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    """As llama.cpp and transformers write it: no HTML escapes, a blank after separators."""
    import json  # noqa: PLC0415  only templates with tools come here

    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, default=list)


def _plain(value: Any) -> Any:
    """Escapes of HTML have no place in a prompt."""
    return value


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, with which trainers mark what to learn: its inside counts, the mark does not."""

    tags = {"generation"}  # noqa: RUF012  the base class has it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment() -> jinja2.sandbox.SandboxedEnvironment:
    # Not the immutable one: some templates build lists. What they could change is this request's alone.
    env = jinja2.sandbox.SandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation], keep_trailing_newline=False, autoescape=False
    )
    env.filters["tojson"] = _tojson
    env.filters.update(dict.fromkeys(("e", "escape", "forceescape", "safe"), _plain))
    env.globals["raise_exception"] = _raise
    env.globals["strftime_now"] = lambda form: datetime.now(UTC).astimezone().strftime(form)
    return env


class Renderer:
    def __init__(self) -> None:
        self._env = _environment()
        self._compiled: dict[str, tuple[jinja2.Template, Needs]] = {}

    def render(self, order: dict[str, Any]) -> str:
        source, variables = order["template"], order["variables"]
        now = datetime.now(UTC).astimezone()
        given: dict[str, Any] = {"date_string": now.strftime("%d %b %Y"), "datetime": now.strftime("%b %d %Y")}
        if _AS_TEXT.search(source) and not _AS_LIST.search(source):
            # Some older templates take the tools as text, under another name.
            given["functions"] = _tojson(variables["tools"], indent=2) if variables.get("tools") else ""
        known = self._compiled.get(source)
        if known is None:
            self._compiled.clear()
            template = self._env.from_string(source)
            tokens = {"bos_token": variables.get("bos_token", ""), "eos_token": variables.get("eos_token", ""), "add_generation_prompt": True}
            needs = needs_of(lambda messages: template.render(messages=messages, **given, **tokens), calls="tool_calls" in source)
            known = self._compiled[source] = (template, needs)
        template, needs = known
        return template.render(**{**given, **variables, "messages": fitted(variables["messages"], needs)})


def main(sock: socket.socket) -> None:
    channel = BlockingChannel(sock)
    used = _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM, used + _ROOM))
    renderer = Renderer()
    while True:
        for order in channel.receive(None):
            answer: dict[str, Any] = {"i": order["i"]}
            try:
                if "schemas" in order:
                    answer["text"] = "\n".join(_rules(order["schemas"], order["names"], loose=order["loose"]))
                else:
                    answer["text"] = renderer.render(order)
            except UnusableSchemaError as error:
                answer["error"] = str(error)
            except TemplateRefusedError as error:
                answer["error"] = f"the chat template refused the messages: {error}"
            except jinja2.TemplateError as error:
                answer["error"] = f"the chat template failed: {type(error).__name__}: {error}"
            except MemoryError:
                answer["error"] = "the chat template used too much memory"
            except Exception as error:
                answer["error"] = f"the chat template failed: {type(error).__name__}: {error}"
            channel.send(answer)


def _rules(schemas: list[Any], names: list[str], *, loose: bool) -> list[str]:
    """`names`: what the schemas are called in an error, if there is one for each."""
    found = []
    for index, schema in enumerate(schemas):
        try:
            found.append(schema_rules(schema, f"s{index}-", loose=loose))
        except UnusableSchemaError as error:
            raise UnusableSchemaError(f"{names[index]}: {error}" if len(names) == len(schemas) else str(error)) from None
    return found


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[0]) * resource.getpagesize()
