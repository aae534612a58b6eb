"""Texts of a pattern that have so many characters: rules of a grammar that count while they follow the pattern. Pure.

A rule stands for a place in the pattern and the number of characters up to there; the places are those of Glushkov's automaton. So the pattern and
the bounds have to be small.
"""

from collections.abc import Callable, Iterable

from corral_server.patterns import Characters, Either, Node, PatternError, Ranges, Repeat, Sequence

_MOST_RULES = 500
_MOST_WAYS = 3000
"""A grammar may have 64 KiB."""
_BEGIN = -1


class _TooManyError(Exception):
    """More places than a grammar has room for."""


def counted_rules(
    node: Node, shortest: int, longest: int | None, one_of: Callable[[Ranges], str], named: Callable[[str, str], None], prefix: str
) -> str | None:
    """The name of the rule that begins; None where the grammar would be too large. `node` has no anchors.

    `one_of` writes one character of a set, `named` adds a rule; their names begin with `prefix`. PatternError where no text is so long.
    """
    places = _Places()
    try:
        nullable, first, last = places.walk(node)
    except _TooManyError:
        return None
    follow = {_BEGIN: first, **places.follow}
    ends = last | ({_BEGIN} if nullable else set())
    limit = shortest if longest is None else longest

    def after(state: tuple[int, int]) -> Iterable[tuple[int, int]]:
        count = state[1] + 1
        if longest is None or count <= longest:
            for place in sorted(follow[state[0]]):
                yield place, min(count, limit)

    reached, waiting = {(_BEGIN, 0)}, [(_BEGIN, 0)]
    ways = 0
    while waiting:
        for state in after(waiting.pop()):
            ways += 1
            if state not in reached:
                reached.add(state)
                waiting.append(state)
        if len(reached) > _MOST_RULES or ways > _MOST_WAYS:
            return None
    alive = {state for state in reached if state[0] in ends and state[1] >= shortest}
    grown = True
    while grown:
        more = {state for state in reached - alive if any(each in alive for each in after(state))}
        alive |= more
        grown = bool(more)
    if (_BEGIN, 0) not in alive:
        raise PatternError(f"no text of the pattern has {shortest} to {'any number of' if longest is None else longest} characters")
    for state in sorted(alive):
        options = [f"{one_of(places.sets[place])} {_name(prefix, (place, count))}" for place, count in after(state) if (place, count) in alive]
        if state[0] in ends and state[1] >= shortest:
            options.append('""')
        named(_name(prefix, state), " | ".join(options))
    return _name(prefix, (_BEGIN, 0))


def _name(prefix: str, state: tuple[int, int]) -> str:
    return f"{prefix}-{state[0] + 1}-{state[1]}"


class _Places:
    """What may follow each character of a pattern."""

    def __init__(self) -> None:
        self.sets: list[Ranges] = []
        self.follow: dict[int, set[int]] = {}

    def walk(self, node: Node) -> tuple[bool, set[int], set[int]]:
        """Whether it may be empty; where it may begin; where it may end."""
        if isinstance(node, Characters):
            place = len(self.sets)
            if place >= _MOST_RULES:
                raise _TooManyError
            self.sets.append(node.ranges)
            self.follow[place] = set()
            return False, {place}, {place}
        if isinstance(node, Either):
            found = [self.walk(option) for option in node.options]
            return any(each[0] for each in found), set().union(*(each[1] for each in found)), set().union(*(each[2] for each in found))
        if isinstance(node, Repeat):
            return self._repeated(node)
        return self._in_a_row([self.walk(part) for part in node.parts] if isinstance(node, Sequence) else [])

    def _repeated(self, node: Repeat) -> tuple[bool, set[int], set[int]]:
        if (node.most or node.least) > _MOST_RULES:
            raise _TooManyError
        times = max(node.least, 1) if node.most is None else node.most
        copies = [self.walk(node.part) for _ in range(times)]
        if node.most is None and copies:
            self._join(copies[-1][2], copies[-1][1])
        return self._in_a_row([(copy[0] or index >= node.least, copy[1], copy[2]) for index, copy in enumerate(copies)])

    def _in_a_row(self, parts: list[tuple[bool, set[int], set[int]]]) -> tuple[bool, set[int], set[int]]:
        nullable, first, last = True, set[int](), set[int]()
        for empty, begins, ends in parts:
            self._join(last, begins)
            first = first | begins if nullable else first
            last = last | ends if empty else ends
            nullable = nullable and empty
        return nullable, first, last

    def _join(self, ends: set[int], begins: set[int]) -> None:
        for place in ends:
            self.follow[place] |= begins
