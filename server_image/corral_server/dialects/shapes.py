"""What there is to say of a way to write tool calls and thoughts. Pure data."""

from dataclasses import dataclass
from enum import Enum


class Shape(Enum):
    """How the text of a call is built."""

    OBJECTS = "objects"
    """A marker, an object with name and arguments, a closing marker; again for the next call."""
    ARRAY = "array"
    """A marker and a list of such objects."""
    BARE = "bare"
    """The object alone is the answer."""
    NAMED = "named"
    """A marker, the name, a separator, the arguments alone."""
    TAGGED = "tagged"
    """The name and each argument within tags of its own; strings stand there as they are."""
    BRACED = "braced"
    """`call:NAME{key:value}`, strings between marks of their own."""
    PYTHON = "python"
    """A list of calls as Python writes them."""
    SECTION = "section"
    """A section of calls, each with a mark, the name, a separator and the arguments."""
    HARMONY = "harmony"
    """Channels: the call is a message to `functions.NAME`."""
    GENERIC = "generic"
    """The model was not trained on tools: every answer is an object of our own, by grammar."""


@dataclass(frozen=True)
class Tags:
    """How a call with tagged arguments is written, from its name to its end; `breaks` stand after each tag."""

    call: str
    """Before the name."""
    named: str
    """After it."""
    key: str
    """Before the name of an argument."""
    keyed: tuple[str, ...]
    """After it, up to the value; blanks may stand between."""
    valued: str
    """After the value."""
    called: str = ""
    """After the last argument; nothing where the dialect's closing mark ends the call."""
    breaks: str = "\n"
    """What stands between the tags: a line break, or nothing where a grammar may take one or not."""
    padded: bool = False
    """A line break before a value and one after it are not part of it."""
    typed: bool = False
    """A tag says whether its value is a string, last."""
    nested: bool = False
    """Several calls may stand in one opening."""


@dataclass(frozen=True)
class Dialect:
    name: str
    shape: Shape
    opening: str = ""
    closing: str = ""
    between: str = ""
    """Between the arguments' end and the next call, inside one opening."""
    separator: str = ""
    """Between name and arguments, where the name stands alone."""
    arguments_key: str = "arguments"
    name_key: str = "name"
    preserved: tuple[str, ...] = ()
    """Special tokens that have to come out as text."""
    parallel: bool = True
    tags: Tags | None = None
    quote: str = ""
    """Stands around strings, where they are not in quotes."""
    short: str = ""
    """What some calls begin with whose model leaves the opening out."""
    ends_thought: bool = False
    """A call may come in the middle of a thought, and ends it: some models forget to."""

    @property
    def marks(self) -> list[str]:
        """What announces a call."""
        return [self.opening, self.short] if self.short else [self.opening]


@dataclass(frozen=True)
class Thinking:
    opening: str
    closing: str
    special: tuple[str, ...] = ()
    """Special tokens of the marks; where it is empty, the marks themselves."""

    @property
    def preserved(self) -> tuple[str, ...]:
        """Special tokens that have to come out as text."""
        return self.special or (self.opening, self.closing)
