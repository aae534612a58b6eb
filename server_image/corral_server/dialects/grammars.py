"""Grammars that hold a model to tool calls in its own dialect. Takes rules of the arguments that were made from their schemas. Pure."""

import json
from collections.abc import Sequence

from corral_server.dialects.formats import DEEPSEEK_CALL, DEEPSEEK_CALL_END, Dialect, Shape, Thinking

_MOST_CALLS = 16


def literal(text: str) -> str:
    """Text as a grammar's terminal."""
    return json.dumps(text, ensure_ascii=False)


def thought_rule(thinking: Thinking) -> str:
    """Anything up to and with the closing mark."""
    mark = thinking.closing
    parts = [literal(mark[:i]) + " [^" + _in_class(mark[i]) + "]" if i else "[^" + _in_class(mark[0]) + "]" for i in range(len(mark))]
    return f"thought ::= ( {' | '.join(parts)} )* {literal(mark)} blank\n"


def _in_class(character: str) -> str:
    return "\\" + character if character in "[]^-\\" else character


def content_grammar(rules: str, root: str, thinking: Thinking | None) -> str:
    """An answer by a schema; after the thought, when the prompt has opened one."""
    if thinking is None:
        return f"root ::= {root}\n{rules}"
    return f"root ::= thought {root}\n{thought_rule(thinking)}blank ::= [ \\n]*\n{rules}"


def calls_grammar(
    dialect: Dialect, names: Sequence[str], roots: Sequence[str], rules: str, *, parallel: bool, thinking: Thinking | None, content: bool = False
) -> str:
    """Calls of the named functions; `roots` are the rules of their arguments. `content`: the generic dialect may answer in words instead."""
    call = " | ".join(_call(dialect, name, root) for name, root in zip(names, roots, strict=True))
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
    if dialect.shape is Shape.HARMONY:
        return f"{literal('<|channel|>commentary to=functions.' + name + ' <|constrain|>json<|message|>')} {root}"
    if dialect.shape is Shape.OBJECTS:
        return f"{literal(dialect.opening)} blank {_object(dialect, name, root)} blank {literal(dialect.closing)}"
    return _object(dialect, name, root)


def _body(dialect: Dialect, more: str) -> str:
    again = f" ( blank one-call ){more}" if more else ""
    listed = f' ( "," blank one-call ){more}' if more else ""
    shape = dialect.shape
    if shape is Shape.ARRAY:
        closing = f" {literal(dialect.closing)}" if dialect.closing else ""
        return f'{literal(dialect.opening)} blank "[" blank one-call{listed} blank "]"{closing}'
    if shape is Shape.NAMED and dialect.closing:
        return f"{literal(dialect.opening)} one-call{again} {literal(dialect.closing)}"
    if shape is Shape.HARMONY:
        return "harmony-thought? one-call"
    if shape is Shape.GENERIC:
        if more:
            return f'"{{" blank "\\"tool_calls\\"" blank ":" blank "[" blank one-call{listed} blank "]" blank "}}"'
        return '"{" blank "\\"tool_call\\"" blank ":" blank one-call blank "}"'
    return f"one-call{again}"
