"""How often something comes, as a grammar says it. Pure.

llama.cpp makes a rule for each time that something may come, and refuses more than 2000 times at once: long repetitions are blocks of shorter ones.
"""

COMMA = '"," space '
"""Between two members of a JSON array or object."""
_AT_ONCE = 500
_BLOCK = 200
MOST = _BLOCK * _AT_ONCE


def times(unit: str, least: int, most: int | None) -> str:
    """The unit, a name or something in brackets, so many times; `most` None: without end. ValueError beyond `MOST`."""
    if max(least, most or 0) > MOST:
        raise ValueError(f"more than {MOST} times cannot be held")
    sign = {(0, None): "*", (1, None): "+", (0, 1): "?", (1, 1): ""}.get((least, most))
    if sign is not None:
        return unit + sign
    if max(least, most or 0) <= _AT_ONCE:
        return f"{unit}{{{least},{'' if most is None else most}}}"
    rest = f"{unit}*" if most is None else _up_to(unit, most - least)
    return f"( {_exactly(unit, least)} {rest} )"


def listed(member: str, least: int, most: int | None, *, begun: bool) -> str:
    """So many members with commas between; `begun`: something stands before, so that a comma comes first. ValueError as of `times`."""
    if most == 0:
        return ""
    if begun:
        return times(f"( {COMMA}{member} )", least, most)
    rest = listed(member, max(0, least - 1), None if most is None else most - 1, begun=True)
    text = f"{member} {rest}".rstrip()
    return text if least else f"( {text} )?"


def _exactly(unit: str, count: int) -> str:
    blocks, rest = divmod(count, _BLOCK)
    return " ".join([f"( {unit}{{{_BLOCK}}} ){{{blocks}}}"] * bool(blocks) + [f"{unit}{{{rest}}}"] * bool(rest))


def _up_to(unit: str, count: int) -> str:
    """So that at most a few ways are open at each time."""
    blocks, rest = divmod(count, _BLOCK)
    if not blocks:
        return f"{unit}{{0,{count}}}"
    block = f"( {unit}{{{_BLOCK}}} )"
    fewer = f"{block}{{0,{blocks - 1}}} " if blocks > 1 else ""
    more = f" {unit}{{0,{rest}}}" if rest else ""
    return f"( {fewer}{unit}{{0,{_BLOCK - 1}}} | {block}{{{blocks}}}{more} )"
