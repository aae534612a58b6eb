"""Regular expressions of JSON schemas (ECMA-262) as trees of sets of characters. Pure.

A character is a code point, a set of them ascending ranges that do not touch. What no grammar can say (looking around, references back, borders of
words) is refused by name; whether a repetition is greedy makes no difference to what it takes.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

Ranges = tuple[tuple[int, int], ...]
LAST = 0x10FFFF


class PatternError(ValueError):
    """The pattern is not a regular expression, or not one that a grammar can hold."""


@dataclass(frozen=True)
class Characters:
    """One of these."""

    ranges: Ranges


@dataclass(frozen=True)
class Sequence:
    parts: tuple["Node", ...]


@dataclass(frozen=True)
class Either:
    options: tuple["Node", ...]


@dataclass(frozen=True)
class Repeat:
    """`most` None: without end."""

    part: "Node"
    least: int
    most: int | None


@dataclass(frozen=True)
class Start:
    """`^`"""


@dataclass(frozen=True)
class End:
    """`$`"""


Node = Characters | Sequence | Either | Repeat | Start | End


def union(*sets: Iterable[tuple[int, int]]) -> Ranges:
    found: list[tuple[int, int]] = []
    for low, high in sorted(each for ranges in sets for each in ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


def complement(ranges: Ranges) -> Ranges:
    found, begin = [], 0
    for low, high in ranges:
        if begin < low:
            found.append((begin, low - 1))
        begin = high + 1
    return (*found, (begin, LAST)) if begin <= LAST else tuple(found)


def of(text: str) -> Ranges:
    return union((ord(character), ord(character)) for character in text)


_DIGITS: Ranges = ((0x30, 0x39),)
_WORD = union(_DIGITS, ((0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)))
_SPACE = union(of(" \t\n\v\f\r\u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"), ((0x2000, 0x200A),))
_NO_LINE_END = complement(of("\n\r\u2028\u2029"))
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE, "D": complement(_DIGITS), "W": complement(_WORD), "S": complement(_SPACE)}
_CATEGORY = re.compile(r"\{(?:gc=|General_Category=)?([A-Za-z_]+)\}")
_CATEGORIES = {
    "Letter": "L", "Uppercase_Letter": "Lu", "Lowercase_Letter": "Ll", "Mark": "M", "Number": "N", "Decimal_Number": "Nd", "Punctuation": "P",
    "Symbol": "S", "Separator": "Z",
}  # fmt: skip
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_FLAGS = re.compile(r"\?([is]*):")


@functools.cache
def _category(name: str) -> Ranges:
    """The characters of a general category of Unicode, in its basic plane: a grammar has to stay small. Empty: there is no such category."""
    return union((code, code) for code in range(0x10000) if unicodedata.category(chr(code)).startswith(name))


def parse(pattern: str) -> Node:
    """The tree; PatternError says what is wrong, and where."""
    return _Parser(pattern).whole()


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._flags = ""
        """Of the group: `i` for letters of either case, `s` for a dot that is any character."""

    def whole(self) -> Node:
        found = self._either()
        if self._at < len(self._text):
            raise self._wrong("a parenthesis closes that was never opened")
        return found

    def _wrong(self, what: str) -> PatternError:
        return PatternError(f"{what}, at character {self._at} of the pattern {self._text[:80]!r}")

    def _next(self, text: str) -> bool:
        """Whether that comes next; then it is taken."""
        found = self._text.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def _either(self) -> Node:
        options = [self._sequence()]
        while self._next("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Either(tuple(options))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._repeated(self._one()))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _repeated(self, part: Node) -> Node:
        least, most = self._times()
        if (least, most) == (1, 1):
            return part
        if isinstance(part, (Start, End)):
            raise self._wrong("the beginning or the end is repeated")
        self._next("?")
        if self._times() != (1, 1):
            raise self._wrong("a repetition is repeated")
        return Repeat(part, least, most)

    def _times(self) -> tuple[int, int | None]:
        for sign, times in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._next(sign):
                return times
        end = self._text.find("}", self._at)
        if not self._text.startswith("{", self._at) or end < 0:
            return 1, 1
        low, comma, high = self._text[self._at + 1 : end].partition(",")
        if not (low.isascii() and low.isdigit()) or (high and not (high.isascii() and high.isdigit())):
            return 1, 1  # a brace that means itself
        self._at = end + 1
        least = int(low)
        most = least if not comma else int(high) if high else None
        if most is not None and most < least:
            raise self._wrong(f"{{{least},{most}}} is no number of times")
        return least, most

    def _one(self) -> Node:
        if self._next("^"):
            return Start()
        if self._next("$"):
            return End()
        if self._next("."):
            return Characters(complement(()) if "s" in self._flags else _NO_LINE_END)
        if self._next("("):
            return self._group()
        if self._next("["):
            return Characters(self._class())
        if self._text[self._at] in "*+?":
            raise self._wrong("there is nothing to repeat")
        if not self._next("\\"):
            self._at += 1
            return Characters(self._of_case(of(self._text[self._at - 1])))
        for signs, node in (("A", Start()), ("zZ", End())):
            if self._text[self._at : self._at + 1] and self._text[self._at] in signs:
                self._at += 1
                return node
        if self._text[self._at : self._at + 1] in ("b", "B"):
            raise self._wrong("the border of a word cannot be held")
        return Characters(self._of_case(self._escaped()))

    def _of_case(self, ranges: Ranges) -> Ranges:
        """Where case makes no difference: with the other case of letters; of large sets with that of ASCII's."""
        if "i" not in self._flags:
            return ranges
        some = [code for low, high in ranges for code in range(low, min(high, max(low + 1000, 0x7F)) + 1)]
        return union(ranges, (each for code in some for way in (chr(code).lower(), chr(code).upper()) if len(way) == 1 for each in of(way)))

    def _group(self) -> Node:
        outer = self._flags
        if found := _FLAGS.match(self._text, self._at):
            self._at = found.end()
            self._flags += found[1]
        elif self._text.startswith(("?<", "?P<"), self._at) and not self._text.startswith(("?<=", "?<!"), self._at):
            self._at = self._text.find(">", self._at) + 1 or len(self._text)
        elif self._text.startswith("?", self._at):
            raise self._wrong(f"({self._text[self._at : self._at + 3]} cannot be held: a grammar does not look around, and knows no such flags")
        node = self._either()
        if not self._next(")"):
            raise self._wrong("a parenthesis is not closed")
        self._flags = outer
        return node

    def _class(self) -> Ranges:
        negated = self._next("^")
        found: Ranges = ()
        while not self._next("]"):
            low = self._member()
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at) and _single(low):
                self._at += 1
                high = self._member()
                if not _single(high):
                    found = union(found, low, of("-"), high)
                    continue
                if high[0][0] < low[0][0]:
                    raise self._wrong("a range ends before it begins")
                low = ((low[0][0], high[0][0]),)
            found = union(found, low)
        found = self._of_case(found)
        return complement(found) if negated else found

    def _member(self) -> Ranges:
        if self._at >= len(self._text):
            raise self._wrong("a bracket is not closed")
        if self._next("\\"):
            return of("\b") if self._next("b") else self._escaped()
        self._at += 1
        return of(self._text[self._at - 1])

    def _escaped(self) -> Ranges:
        """What stands behind a backslash."""
        sign = self._text[self._at : self._at + 1]
        if not sign:
            raise self._wrong("a backslash ends the pattern")
        self._at += 1
        if sign in _CLASSES:
            return _CLASSES[sign]
        if sign in _CONTROLS:
            return of(chr(_CONTROLS[sign]))
        if sign in ("x", "u"):
            code = self._code(2 if sign == "x" else 4)
            if 0xD800 <= code < 0xDC00 and self._next("\\u"):
                code = 0x10000 + ((code - 0xD800) << 10) + (self._code(4) - 0xDC00)
            if code > LAST:
                raise self._wrong("there is no such character")
            return ((code, code),)
        if sign in ("p", "P") and (named := _CATEGORY.match(self._text, self._at)) and (found := _category(_CATEGORIES.get(named[1], named[1]))):
            self._at = named.end()
            return complement(found) if sign == "P" else found
        if sign == "c" and self._text[self._at : self._at + 1].isalpha():
            self._at += 1
            return of(chr(ord(self._text[self._at - 1]) % 32))
        if sign.isascii() and sign.isalnum():
            raise self._wrong(f"\\{sign} cannot be held")
        return of(sign)

    def _code(self, digits: int) -> int:
        end = self._at + digits
        if self._next("{"):
            end = self._text.find("}", self._at)
        text = self._text[self._at : max(end, self._at)]
        try:
            code = int(text, 16)
        except ValueError:
            raise self._wrong("a character's number is not hexadecimal") from None
        self._at = end + (self._text[end : end + 1] == "}" and self._text[self._at - 1] == "{")
        return code


def _single(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]
