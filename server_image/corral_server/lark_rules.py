"""Grammars in Lark's language, as custom tools have them, as rules of texts within JSON strings. Pure; Lark's own loader reads them.

A text is held to the language as such: which terminal is the longest, and priorities, make no difference to what a grammar takes. Lark's parsers
allow rules that begin with themselves; llama.cpp's grammars do not, so those are turned into repetitions.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from lark.exceptions import LarkError
from lark.load_grammar import load_grammar

from corral_server.pattern_rules import part_rule
from corral_server.patterns import PatternError

_RELATIVE = re.compile(r"^\s*%(import|extend|override)\s+\.", re.MULTILINE)
_START = "start"

Alternatives = list[tuple[str, ...]]


class LarkRulesError(ValueError):
    """The grammar is none, or not one that a grammar of llama.cpp can say."""


def lark_rule(definition: str, add: Callable[[str, str], str]) -> str:
    """The name of the rule of a text, without quotes, which `add` has added with all below it. LarkRulesError says why there is none."""
    if _RELATIVE.search(definition):
        raise LarkRulesError("%import takes what comes with Lark (such as common.NUMBER), no files")
    try:
        grammar, _ = load_grammar(definition, "grammar", [], global_keep_all_tokens=False)  # type: ignore[no-untyped-call]
        terminals, rules, ignored = grammar.compile([_START], "*")
    except (LarkError, AssertionError, LookupError, OSError) as error:
        raise LarkRulesError(str(error).strip().splitlines()[0][:200] or type(error).__name__) from None
    except re.error as error:
        raise LarkRulesError(f"a terminal is no regular expression: {error}") from None
    written = {terminal.name: _terminal(terminal) for terminal in terminals}
    alternatives: dict[str, Alternatives] = {}
    for rule in rules:
        alternatives.setdefault(rule.origin.name, []).append(tuple(symbol.name for symbol in rule.expansion))
    if _START not in alternatives:
        raise LarkRulesError(f"there is no rule {_START}")
    repeated = {name: _repeated(name, found) for name, found in alternatives.items()}
    _check_beginnings(repeated)
    names = {name: f"lark-{number}" for number, name in enumerate(alternatives)}
    between = add("lark-ignored", f"( {' | '.join(written[name] for name in ignored)} )*") if ignored else ""
    tokens = {
        name: add(f"lark-token-{number}", f"{text} {between}".rstrip()) for number, (name, text) in enumerate(written.items()) if name not in ignored
    }

    def said(sequence: Iterable[str]) -> str:
        return " ".join(names.get(symbol) or tokens.get(symbol) or written[symbol] for symbol in sequence) or '""'

    for name, (begins, more) in repeated.items():
        text = " | ".join(said(each) for each in begins)
        add(names[name], f"( {text} ) ( {' | '.join(said(each) for each in more)} )*" if more else text)
    return f"{between} {names[_START]}".strip()


def _terminal(terminal: Any) -> str:
    try:
        return part_rule(terminal.pattern.to_regexp())
    except PatternError as error:
        raise LarkRulesError(f"terminal {terminal.name}: {error}") from None


def _repeated(name: str, alternatives: Alternatives) -> tuple[Alternatives, Alternatives]:
    """What the rule begins with, and what may follow again and again: `a: a "+" b | b` is a b, then any number of `"+" b`."""
    begins = [each for each in alternatives if each[:1] != (name,)]
    more = [each[1:] for each in alternatives if each[:1] == (name,) and len(each) > 1]
    if not begins:
        raise LarkRulesError(f"rule {name} never ends")
    return begins, more


def _check_beginnings(rules: dict[str, tuple[Alternatives, Alternatives]]) -> None:
    """No rule may begin with itself by way of another."""
    empty: set[str] = set()
    while more := {name for name, (begins, _) in rules.items() if any(empty.issuperset(each) for each in begins)} - empty:
        empty |= more
    first: dict[str, set[str]] = {}
    for name, (begins, more_of) in rules.items():
        found = first.setdefault(name, set())
        for each in [*begins, *(more_of if name in empty else [])]:
            for symbol in each:
                found.add(symbol)
                if symbol not in empty:
                    break
    for name in rules:
        seen: set[str] = set()
        waiting = list(first[name])
        while waiting:
            symbol = waiting.pop()
            if symbol == name:
                raise LarkRulesError(f"rule {name} begins with itself by way of another rule; let it begin with itself, or with something else")
            if symbol in rules and symbol not in seen:
                seen.add(symbol)
                waiting += first[symbol]
