"""Grammars that hold a model to tool calls in its own dialect. Takes rules of the arguments that were made from their schemas. Pure."""

import json
from collections.abc import Sequence
from typing import Any

from corral_server.dialects.formats import DEEPSEEK_CALL, DEEPSEEK_CALL_END, Dialect, Shape, Thinking
from corral_server.dialects.free_text import literal, up_to
from corral_server.dialects.listed_grammar import listed_rules, listed_schemas
from corral_server.dialects.tagged_formats import KIMI_ARGUMENTS, KIMI_CALL, KIMI_CALL_END
from corral_server.dialects.tagged_grammar import parameter_schemas, tagged_rules

_MOST_CALLS = 16


def thought_rule(thinking: Thinking) -> str:
    """Anything up to and with the closing mark."""
    return f"thought ::= thought-text blank\n{up_to('thought-text', thinking.closing)}"


def content_grammar(rules: str, root: str, thinking: Thinking | None) -> str:
    """An answer by a schema; after the thought, when the prompt has opened one."""
    if thinking is None:
        return f"root ::= {root}\n{rules}"
    return f"root ::= thought {root}\n{thought_rule(thinking)}blank ::= [ \\n]*\n{rules}"


def ruled_schemas(dialect: Dialect, schemas: Sequence[Any]) -> list[Any]:
    """The schemas of which a grammar of calls needs rules: of all arguments at once, or of each where they stand alone."""
    if dialect.shape in (Shape.BRACED, Shape.PYTHON):
        return listed_schemas(dialect, schemas)
    return list(schemas) if dialect.tags is None else parameter_schemas(dialect.tags, schemas)


def calls_grammar(
    dialect: Dialect, names: Sequence[str], schemas: Sequence[Any], rules: str, *, parallel: bool, thinking: Thinking | None, content: bool = False
) -> str:
    """Calls of the named functions, `schemas` being those of their arguments; `rules` were made of the `ruled_schemas`, beginning at `s0-root`.

    `content`: the generic dialect may answer in words instead.
    """
    if dialect.tags is not None:
        calls, own_rules = tagged_rules(dialect, dialect.tags, names, schemas)
    elif dialect.shape in (Shape.BRACED, Shape.PYTHON):
        calls, own_rules = listed_rules(dialect, names, schemas)
    else:
        calls, own_rules = [_call(dialect, name, f"s{index}-root") for index, name in enumerate(names)], ""
    rules = own_rules + rules
    call = " | ".join(calls)
    more = f"{{0,{_MOST_CALLS - 1}}}" if parallel else "{0,0}"
    body = _body(dialect, more if parallel else "")
    if dialect.shape is Shape.GENERIC and content:
        body += ' | "{" blank "\\"response\\"" blank ":" blank response-text blank "}"'
    start = "thought " if thinking is not None else ""
    grammar = f"root ::= {start}calls\ncalls ::= {body}\none-call ::= {call}\nblank ::= [ \\n]*\n{rules}"
    if "response-text" in body:
        grammar += '\nresponse-text ::= "\\"" ( [^"\\\\\\x00-\\x1F] | "\\\\" ( ["\\\\bfnrt/] | "u" [0-9a-fA-F]{4} ) )* "\\""'
    if "harmony-thought" in body:
        grammar += '\nharmony-thought ::= "<|channel|>analysis<|message|>" ( [^<] | "<" [^|] )* "<|end|><|start|>assistant"'
    return grammar + "\n" + (thought_rule(thinking) if thinking is not None else "")


def _object(dialect: Dialect, name: str, root: str) -> str:
    return f'{literal("{" + json.dumps(dialect.name_key) + ": " + json.dumps(name) + ", " + json.dumps(dialect.arguments_key) + ": ")} {root} "}}"'


def _call(dialect: Dialect, name: str, root: str) -> str:
    if dialect.shape is Shape.NAMED and dialect.name == "deepseek":
        fenced = f'{literal("function" + dialect.separator + name)} blank "```json\\n" {root} "\\n```"'
        return f"{literal(DEEPSEEK_CALL)} ( {fenced} | {literal(name + dialect.separator)} {root} ) {literal(DEEPSEEK_CALL_END)}"
    if dialect.shape is Shape.NAMED:
        return f"{literal(dialect.opening + name + dialect.separator)} {root}"
    if dialect.shape is Shape.SECTION:
        return f"{literal(KIMI_CALL + 'functions.' + name + ':')} [0-9]{{1,3}} {literal(KIMI_ARGUMENTS)} {root} {literal(KIMI_CALL_END)}"
    if dialect.shape is Shape.HARMONY:
        return f"{literal('<|channel|>commentary to=functions.' + name + ' <|constrain|>json<|message|>')} {root}"
    if dialect.shape is Shape.OBJECTS:
        return f"{literal(dialect.opening)} blank {_object(dialect, name, root)} blank {literal(dialect.closing)}"
    return _object(dialect, name, root)


def _body(dialect: Dialect, more: str) -> str:
    again = f" ( blank one-call ){more}" if more else ""
    listed = f' ( "," blank one-call ){more}' if more else ""
    shape = dialect.shape
    if shape is Shape.PYTHON:
        others = f' ( ", " one-call ){more}' if more else ""
        return f"{literal(dialect.opening + '[')} one-call{others} {literal(']' + dialect.closing)}"
    if shape is Shape.ARRAY:
        closing = f" {literal(dialect.closing)}" if dialect.closing else ""
        return f'{literal(dialect.opening)} blank "[" blank one-call{listed} blank "]"{closing}'
    if dialect.tags is not None and dialect.tags.nested:
        return f'{literal(dialect.opening)} "\\n" one-call{again} {literal(dialect.closing)}'
    if shape in (Shape.NAMED, Shape.SECTION) and dialect.closing:
        return f"{literal(dialect.opening)} one-call{again} {literal(dialect.closing)}"
    if shape is Shape.HARMONY:
        return "harmony-thought? one-call"
    if shape is Shape.GENERIC:
        if more:
            return f'"{{" blank "\\"tool_calls\\"" blank ":" blank "[" blank one-call{listed} blank "]" blank "}}"'
        return '"{" blank "\\"tool_call\\"" blank ":" blank one-call blank "}"'
    return f"one-call{again}"
