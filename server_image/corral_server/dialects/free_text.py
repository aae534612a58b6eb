"""Grammar rules of free text that ends at a mark (everything up to the mark's first place, and the mark itself), and of free names. Pure."""

import string
from collections.abc import Collection, Iterable

_IN_NAMES = string.ascii_letters + string.digits + "_.-"
_LONGEST_NAME = 64
"""Groups nest once for each character of a name, and grammars may not nest for ever."""
_MOST_TAKEN = 300
"""Characters of names in all; each takes some 50 bytes of a grammar."""
_ESCAPES = {**{code: f"\\x{code:02X}" for code in (*range(32), 127)}, **{ord(c): "\\" + s for c, s in zip('"\\\n\r\t', '"\\nrt', strict=True)}}


def literal(text: str) -> str:
    """Text as a grammar's terminal."""
    return f'"{text.translate(_ESCAPES)}"'


def up_to(name: str, mark: str) -> str:
    """Rules of which the one called `name` reads anything up to and with the mark's first place.

    One rule for each number of the mark's characters that were seen last, as in a search for the mark: a grammar that only compares one character
    after the other misses a mark behind its own beginning (`<</think>`), and would let the text go on for ever.
    """
    rules = []
    for seen in range(len(mark)):
        steps = {c: _seen_after(mark, mark[:seen] + c) for c in dict.fromkeys(mark[: seen + 1])}
        ways = [literal(c) + ("" if after == len(mark) else f" {_state(name, after)}") for c, after in steps.items() if after]
        others = "".join(_in_class(c) for c, after in steps.items() if after)
        rules.append(f"{_state(name, seen)} ::= {' | '.join([*ways, f'[^{others}] {name}'])}")
    return "\n".join(rules) + "\n"


def name_but(taken: Collection[str]) -> str:
    """An expression of any name that is none of these; nothing where they are too many to tell apart."""
    if sum(map(len, taken)) > _MOST_TAKEN:
        return ""
    return _going_on({n for n in taken if len(n) <= _LONGEST_NAME and set(n) <= set(_IN_NAMES)}, first=True)


def _going_on(taken: set[str], *, first: bool) -> str:
    """What may follow where these are what is left of the names that are taken."""
    steps = {name[0]: {n[1:] for n in taken if n[:1] == name[0]} for name in sorted(taken) if name}
    free = _ranges(c for c in _IN_NAMES if c not in steps)
    ways = [f"{literal(c)} {_going_on(rest, first=False)}" for c, rest in steps.items()] + ([f"[{free}] [a-zA-Z0-9_.-]*"] if free else [])
    return f"( {' | '.join(ways)} ){'' if first or '' in taken else '?'}"


def _ranges(characters: Iterable[str]) -> str:
    """Characters as the inside of a class, as short as can be: a grammar has a bound, and needs one for each character of a name."""
    runs: list[list[str]] = []
    for character in sorted(characters):
        if runs and ord(character) == ord(runs[-1][-1]) + 1:
            runs[-1].append(character)
        else:
            runs.append([character])
    return "".join("".join(map(_in_class, run)) if len(run) < 4 else f"{run[0]}-{run[-1]}" for run in runs)


def _seen_after(mark: str, text: str) -> int:
    """How many of the mark's first characters a text ends with."""
    return next(n for n in range(len(text), -1, -1) if mark[:n] == text[len(text) - n :])


def _state(name: str, seen: int) -> str:
    return f"{name}-{seen}" if seen else name


def _in_class(character: str) -> str:
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character, "\\" + character if character in "[]^-\\" else character)
