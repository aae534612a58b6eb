"""Grammars of calls whose arguments stand in one list: Gemma's in braces and LFM2's in parentheses. Pure.

The arguments come in the order of the schema, or by their names where the model was shown them so; those that are not required may be left out.
"""

from collections.abc import Sequence
from typing import Any

from corral_server.dialects.free_text import literal, name_but, up_to
from corral_server.dialects.parameters import ANYTHING, STRING, Parameter, Root, Signature, roots_of, ruled, signature_of
from corral_server.dialects.plain_values import quoted
from corral_server.dialects.shapes import Dialect, Shape

_MOST_EXTRA = 16
_NESTING = frozenset({"object", "array"})
_WORDS = (("boolean", True, "True"), ("boolean", False, "False"), ("null", None, "None"))
_IN_QUOTES = r"\\\x00-\x1F] | "
_ESCAPED = r'"\\" [^\x00-\x1F] )*'
_PYTHON_RULES = rf"""py-string ::= "\"" ( [^"{_IN_QUOTES}{_ESCAPED} "\"" | "'" ( [^'{_IN_QUOTES}{_ESCAPED} "'"
"""
_BRACED_RULES = """any-value ::= any-string | any-object | any-array | any-number | any-boolean | any-null
any-object ::= "{" ( any-pair ( "," any-pair )* )? "}"
any-pair ::= [a-zA-Z_] [a-zA-Z0-9_.-]* ":" any-value
any-array ::= "[" ( any-value ( "," any-value )* )? "]"
any-number ::= "-"? [0-9]{1,16} ( "." [0-9]{1,16} )? ( [eE] [-+]? [0-9]{1,3} )?
any-integer ::= "-"? [0-9]{1,16}
any-boolean ::= "true" | "false"
any-null ::= "null"
"""


def listed_schemas(dialect: Dialect, schemas: Sequence[Any]) -> list[Any]:
    """The schemas of which rules are needed, each once."""
    return ruled(schemas, lambda p: _needs_rule(dialect, p))


def listed_rules(dialect: Dialect, names: Sequence[str], schemas: Sequence[Any]) -> tuple[list[str], str]:
    """An expression of a call of each of the functions, and the rules that they use beside those of `listed_schemas`."""
    root = roots_of(listed_schemas(dialect, schemas))
    braced = dialect.shape is Shape.BRACED
    rules = f"{_BRACED_RULES}any-string ::= {literal(dialect.quote)} free-text\n{up_to('free-text', dialect.quote)}" if braced else _PYTHON_RULES
    calls = []
    for index, (name, schema) in enumerate(zip(names, schemas, strict=True)):
        rules += _arguments(dialect, f"c{index}", signature_of(schema), root)
        before, after = (f"{dialect.opening}call:{name}{{", "}" + dialect.closing) if braced else (f"{name}(", ")")
        calls.append(f"{literal(before)} c{index}-begin-0 {literal(after)}")
    return calls, rules


def _needs_rule(dialect: Dialect, parameter: Parameter) -> bool:
    # What nests is written in another way in braces than in JSON.
    others = parameter.kinds - STRING
    return bool(others) and not (dialect.shape is Shape.BRACED and others & _NESTING)


def _arguments(dialect: Dialect, prefix: str, signature: Signature, root: Root) -> str:
    """Rules of which `<prefix>-begin-N` reads the arguments from the Nth on when none was written before, and `<prefix>-more-N` when some was."""
    braced = dialect.shape is Shape.BRACED
    between, sign = (",", ":") if braced else (", ", "=")
    # Gemma's template shows the model its earlier calls so.
    parameters = sorted(signature.parameters, key=lambda p: p.name.lower()) if braced else signature.parameters
    last = len(parameters)
    rules, begin, more = [], '""', '""'
    other = name_but([p.name for p in parameters])
    if signature.extra is not None and other:
        rules.append(f"{prefix}-extra ::= {other} {literal(sign)} {_value(dialect, signature.extra, root)}")
        begin = f"( {prefix}-extra ( {literal(between)} {prefix}-extra ){{0,{_MOST_EXTRA - 1}}} )?"
        more = f"( {literal(between)} {prefix}-extra ){{0,{_MOST_EXTRA}}}"
    rules += [f"{prefix}-begin-{last} ::= {begin}", f"{prefix}-more-{last} ::= {more}"]
    for index, parameter in enumerate(parameters):
        one = f"{literal(parameter.name + sign)} {_value(dialect, parameter, root)}"
        skipped = "" if parameter.required else f" | {prefix}-begin-{index + 1}"
        rules.append(f"{prefix}-begin-{index} ::= {one} {prefix}-more-{index + 1}{skipped}")
        rules.append(f"{prefix}-more-{index} ::= ( {literal(between)} {one} ){'' if parameter.required else '?'} {prefix}-more-{index + 1}")
    return "\n".join(rules) + "\n"


def _value(dialect: Dialect, parameter: Parameter, root: Root) -> str:
    braced = dialect.shape is Shape.BRACED
    if braced and parameter.kinds == ANYTHING:
        return "any-value"
    ways = ["any-string" if braced else "py-string"] if parameter.is_free else [_listed(dialect, text) for text in parameter.texts or ()]
    if _needs_rule(dialect, parameter):
        ways.append(root(parameter.others))
    elif braced:
        ways += [f"any-{kind}" for kind in sorted(parameter.kinds - STRING)]
    if not braced:
        listed = parameter.others.get("enum") if isinstance(parameter.others, dict) else None
        ways += [literal(word) for kind, value, word in _WORDS if kind in parameter.kinds and (listed is None or value in listed)]
    return f"( {' | '.join(ways)} )"


def _listed(dialect: Dialect, text: str) -> str:
    if dialect.shape is Shape.BRACED:
        return literal(dialect.quote + text + dialect.quote)
    double = quoted(text)
    single = double[1:-1].replace('\\"', '"').replace("'", "\\'")
    return f"""{literal(double)} | {literal(f"'{single}'")}"""
