"""Patterns as grammar expressions of JSON strings: what a string says has to match, and what is written has to be JSON. Pure.

As in JSON schemas a pattern may be found anywhere in the text unless it is anchored. What has to be escaped in JSON is written with its short
escape; other characters below the space are taken only where a pattern asks for nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

from corral_server.dialects.free_text import literal
from corral_server.grammar_times import times
from corral_server.pattern_lengths import counted_rules
from corral_server.patterns import Characters, Either, End, Node, PatternError, Ranges, Repeat, Sequence, Start, complement, of, parse, union

_SHORT = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_CONTROL: Ranges = ((0, 0x1F), (0x7F, 0x7F))
_SURROGATES: Ranges = ((0xD800, 0xDFFF),)
_ANYTHING = Repeat(Characters(complement(())), 0, None)
_NOTHING = Sequence(())


def pattern_rule(
    pattern: str, shortest: int = 0, longest: int | None = None, named: Callable[[str, str], None] | None = None, prefix: str = "length"
) -> str:
    """The expression of a string with the pattern, quotes included; PatternError says why there is none.

    `shortest` and `longest` are the bounds of its length. Where more than one part of the pattern has no length of its own they hold by rules that
    count, which `named` adds, their names beginning with `prefix`; without it, and where these would be too many, the pattern alone holds.
    """
    try:
        node = _whole(parse(pattern))
        least, most = _length(node)
        bounded = least < shortest or (longest is not None and (most is None or most > longest))
        simple = _bounded(node, shortest, longest) if bounded else node
        if simple is not None:
            return f'"\\"" {_expression(simple)} "\\""'
        counting = counted_rules(node, shortest, longest, _one_of, named, prefix) if named else None
        return f'"\\"" {counting or _expression(node)} "\\""'
    except RecursionError:
        raise PatternError("the pattern nests too deeply") from None


def part_rule(pattern: str) -> str:
    """The expression of a part of a string: all of the part is the pattern's. PatternError says why there is none."""
    try:
        return _expression(_plain(parse(pattern)))
    except RecursionError:
        raise PatternError("the pattern nests too deeply") from None


def lengths_of(schema: Mapping[str, Any]) -> tuple[int, int | None]:
    """`minLength` and `maxLength`."""
    low, high = schema.get("minLength"), schema.get("maxLength")
    return int(low) if isinstance(low, (int, float)) else 0, int(high) if isinstance(high, (int, float)) else None


class _Side(Enum):
    """What is before or behind a part of the pattern."""

    ANYTHING = 0
    NOTHING = 1
    """An anchor is there: one more changes nothing."""
    MORE = 2
    """Another part of the pattern: no anchor may be here."""


def _whole(node: Node, before: _Side = _Side.ANYTHING, behind: _Side = _Side.ANYTHING) -> Node:
    """Without anchors: with anything at the edges where no anchor is."""
    if isinstance(node, Either):
        return Either(tuple(_whole(option, before, behind) for option in node.options))
    parts = list(node.parts) if isinstance(node, Sequence) else [node]
    while parts and isinstance(parts[0], Start):
        before = _anchored(before)
        parts.pop(0)
    while parts and isinstance(parts[-1], End):
        behind = _anchored(behind)
        parts.pop()
    if not parts:
        return _ANYTHING if _Side.ANYTHING in (before, behind) else _NOTHING
    found = []
    for index, part in enumerate(parts):
        if isinstance(part, (Either, Sequence)):
            # A group at the edge may have anchors of its own.
            left, right = before if index == 0 else _Side.MORE, behind if index == len(parts) - 1 else _Side.MORE
            found.append(_whole(part, left, right))
        else:
            begins = [_ANYTHING] if index == 0 and before is _Side.ANYTHING else []
            ends = [_ANYTHING] if index == len(parts) - 1 and behind is _Side.ANYTHING else []
            found += [*begins, _plain(part), *ends]
    return found[0] if len(found) == 1 else Sequence(tuple(found))


def _anchored(side: _Side) -> _Side:
    if side is _Side.MORE:
        raise PatternError("^ and $ are held only at the beginning and at the end of a pattern")
    return _Side.NOTHING


def _plain(node: Node) -> Node:
    """The same; no anchors are in it."""
    if isinstance(node, (Start, End)):
        raise PatternError("^ and $ are held only at the beginning and at the end of a pattern")
    if isinstance(node, Sequence):
        return Sequence(tuple(_plain(part) for part in node.parts))
    if isinstance(node, Either):
        return Either(tuple(_plain(option) for option in node.options))
    return Repeat(_plain(node.part), node.least, node.most) if isinstance(node, Repeat) else node


# --- lengths


def _bounded(node: Node, shortest: int, longest: int | None) -> Node | None:
    """The same with the bounds in its one part that has no length of its own; None where that is not enough."""
    parts: list[Node] = list(node.parts) if isinstance(node, Sequence) else [node]
    lengths = [_length(part) for part in parts]
    open_ones = [index for index, (least, most) in enumerate(lengths) if least != most]
    if len(open_ones) != 1:
        return None
    (index,) = open_ones
    part, rest = parts[index], sum(least for each, (least, _) in enumerate(lengths) if each != index)
    if isinstance(part, Sequence):
        inner = _bounded(part, shortest - rest, None if longest is None else longest - rest)
        return None if inner is None else Sequence((*parts[:index], inner, *parts[index + 1 :]))
    if not isinstance(part, Repeat) or not isinstance(part.part, Characters):
        return None
    highs = [high for high in (part.most, None if longest is None else longest - rest) if high is not None]
    least, most = max(part.least, shortest - rest), min(highs, default=None)
    if most is not None and most < least:
        raise PatternError(f"no text of the pattern has {shortest} to {'any number of' if longest is None else longest} characters")
    return Sequence((*parts[:index], replace(part, least=least, most=most), *parts[index + 1 :]))


def _length(node: Node) -> tuple[int, int | None]:
    """The fewest and the most characters."""
    if isinstance(node, Characters):
        return 1, 1
    if isinstance(node, Repeat):
        least, most = _length(node.part)
        return least * node.least, None if most is None or node.most is None else most * node.most
    if not isinstance(node, (Sequence, Either)):
        return 0, 0
    each = [_length(part) for part in (node.parts if isinstance(node, Sequence) else node.options)]
    together = sum if isinstance(node, Sequence) else max
    least = sum(low for low, _ in each) if isinstance(node, Sequence) else min(low for low, _ in each)
    highs = [high for _, high in each if high is not None]
    return least, together(highs) if len(highs) == len(each) else None


# --- what it looks like in a grammar


def _expression(node: Node) -> str:
    if isinstance(node, Characters):
        return _one_of(node.ranges)
    if isinstance(node, Repeat):
        return _times(_grouped(node.part), node.least, node.most)
    if isinstance(node, Either):
        return "( " + " | ".join(_expression(option) for option in node.options) + " )"
    if isinstance(node, Sequence):
        return _joined(node) or '""'
    raise AssertionError("anchors are gone by here")


def _joined(node: Sequence) -> str:
    """Single characters in a row are one literal."""
    found: list[str] = []
    text = ""
    for part in node.parts:
        said = _literally(part)
        if said is None:
            found += [literal(text)] * bool(text) + [_expression(part)]
            text = ""
        else:
            text += said
    return " ".join(found + [literal(text)] * bool(text))


def _grouped(node: Node) -> str:
    text = _expression(node)
    return text if isinstance(node, (Characters, Either)) else f"( {text} )"


def _times(text: str, least: int, most: int | None) -> str:
    try:
        return times(text, least, most)
    except ValueError as error:
        raise PatternError(str(error)) from None


def _literally(node: Node) -> str | None:
    """How JSON writes a single character."""
    if not isinstance(node, Characters) or len(node.ranges) != 1 or node.ranges[0][0] != node.ranges[0][1]:
        return None
    character = chr(node.ranges[0][0])
    if character in _SHORT:
        return "\\" + _SHORT[character]
    if _among(ord(character), _CONTROL):
        return f"\\u{ord(character):04x}"
    return None if _among(ord(character), _SURROGATES) else character


def _among(code: int, ranges: Ranges) -> bool:
    return any(low <= code <= high for low, high in ranges)


def _one_of(ranges: Ranges) -> str:
    node = Characters(ranges)
    if (said := _literally(node)) is not None:
        return literal(said)
    raw = complement(union(complement(ranges), _CONTROL, _SURROGATES, of('"\\')))
    escapes = "".join(letter for character, letter in _SHORT.items() if _among(ord(character), ranges))
    ways = [f"[{''.join(_range(low, high) for low, high in raw)}]"] if raw else []
    if escapes:
        ways.append(f'"\\\\" [{"".join(_in_class(ord(letter)) for letter in escapes)}]')
    if not ways:
        rare = [code for low, high in ranges for code in range(low, min(high, 0x7F) + 1)]
        ways = [literal(f"\\u{code:04x}") for code in rare]
    if not ways:
        raise PatternError("a character of the pattern has nothing that it may be")
    return ways[0] if len(ways) == 1 and raw else f"( {' | '.join(ways)} )"


def _range(low: int, high: int) -> str:
    return _in_class(low) if low == high else f"{_in_class(low)}-{_in_class(high)}"


def _in_class(code: int) -> str:
    character = chr(code)
    if character.isascii() and character.isalnum():
        return character
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
