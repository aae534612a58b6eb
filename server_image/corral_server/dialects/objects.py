"""Calls as JSON objects with a name and arguments: after a mark, in a list, alone, or in the form of our own."""

from collections.abc import Collection

from corral_server.dialects.growing import NAME, SPACE, GrowingText, NotACallError, Steps

_PYTHON_TAG = "<|python_tag|>"


def one_object(text: GrowingText, names: Collection[str] | None = None) -> Steps:
    """An object with a name (one of `names`, when given) and its arguments, in any order, and whatever else."""
    text.whole = ""
    if not (yield from text.eat("{")):
        raise NotACallError
    index: int | None = None
    early: str | None = None
    while True:
        yield from text.eat_spaces()
        if (yield from text.eat("}")):
            break
        yield from text.eat(",")
        yield from text.eat_spaces()
        key = yield from text.string()
        yield from text.eat_spaces()
        if not (yield from text.eat(":")):
            raise NotACallError
        yield from text.eat_spaces()
        if key in ("name", "tool_name", "function") and index is None and text.buffer[:1] == '"':
            name = yield from text.string()
            if not NAME.fullmatch(name) or (names is not None and name not in names):
                raise NotACallError
            index = text.begin_call(name)
            if early is not None:
                text.emit("arguments", early, index)
        elif key in ("arguments", "parameters"):
            early = yield from _arguments(text, index)
        else:
            yield from text.value(None)
    if index is None:
        raise NotACallError
    if early is None:
        text.emit("arguments", "{}", index)


def _arguments(text: GrowingText, index: int | None) -> Steps:
    if text.buffer[:1] == '"':
        # Some write the arguments as JSON in a string.
        written = yield from text.string()
        if index is not None:
            text.emit("arguments", written, index)
        return written
    return (yield from text.value(index))


def listed_objects(text: GrowingText) -> Steps:
    """Objects in a list, behind its opening bracket."""
    while True:
        yield from text.spaces()
        if (yield from text.next_is("]")):
            return
        yield from one_object(text)
        yield from text.spaces()
        yield from text.next_is(",")
        if text.closed and not text.buffer:
            return


def bare(text: GrowingText, names: Collection[str]) -> Steps:
    """The whole answer is a call, or it is words."""
    while True:
        yield from text.settled(_PYTHON_TAG)
        if text.buffer.lstrip(SPACE).startswith(_PYTHON_TAG):
            yield from text.until([_PYTHON_TAG], None)
            yield from text.spaces()
        if not text.buffer.lstrip(SPACE).startswith("{"):
            return
        try:
            yield from text.spaces()
            yield from one_object(text, names)
        except NotACallError:
            if not text.calls:
                text.buffer = text.whole + text.buffer
            return
        yield from text.spaces()
        if not (yield from text.next_is(";")):
            return


def generic(text: GrowingText) -> Steps:
    """`{"tool_call": …}`, `{"tool_calls": […]}` or `{"response": "…"}`; anything else is words."""
    yield from text.settled(_PYTHON_TAG)
    if not text.buffer.lstrip(SPACE).startswith("{"):
        return
    try:
        text.whole = ""
        yield from text.eat_spaces()
        yield from text.eat("{")
        yield from text.eat_spaces()
        key = yield from text.string()
        yield from text.eat_spaces()
        yield from text.eat(":")
        yield from text.eat_spaces()
        yield from _generic_value(text, key)
    except NotACallError:
        if not text.calls:
            text.buffer = text.whole + text.buffer
        return
    yield from text.until([], None)


def _generic_value(text: GrowingText, key: str) -> Steps:
    if key == "response":
        yield from text.spoken()
    elif key == "tool_call":
        yield from _wrapped(text)
    elif key == "tool_calls" and (yield from text.eat("[")):
        while True:
            yield from text.spaces()
            yield from _wrapped(text)
            yield from text.spaces()
            if not (yield from text.next_is(",")):
                break
    else:
        raise NotACallError


def _wrapped(text: GrowingText) -> Steps:
    """A call within our own object: what stood before it is said too, when it is none."""
    before = text.whole
    try:
        yield from one_object(text)
    except NotACallError:
        text.whole = before + text.whole
        raise
