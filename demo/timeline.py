"""The timeline of the tour: what the operator told (its events) and what the client measured, in the order in which it happened.

It prints what it is given and must never make anything up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from corral.api.types import format_rounded, parse_quantity

COLOURS = ("cyan", "green", "magenta")
WORDS = {
    "Created": "gets a server process, which starts asleep",
    "Loaded": "is in memory",
    "Evicted": "gives way",
    "LoadFailed": "could not be loaded",
}
QUIET = ("Created", "Loaded")
"""Events whose message adds nothing here but the name of a process."""
BAR = 44


@dataclass(frozen=True, slots=True)
class Answer:
    """One question, as the client lived it."""

    model: str
    question: str
    text: str
    asked: float
    first: float
    done: float
    held_ms: int | None
    pieces: int

    @property
    def to_first(self) -> float:
        return self.first - self.asked


@dataclass(slots=True)
class Timeline:
    console: Console
    models: Sequence[str]
    began: float = field(default_factory=time.time)

    def heading(self, text: str) -> None:
        self.console.print()
        self.console.print(Text(text, style="bold"))

    def say(self, text: str) -> None:
        self.console.print(Text(text, style="dim"))

    def question(self, at: float, model: str, question: str) -> None:
        self._row(at, "you", Text.assemble("ask ", self._name(model), f": {question}"))

    def event(self, event: Mapping[str, Any]) -> None:
        """One event of the operator."""
        model = str(event["object"]).rpartition("/")[2]
        reason = str(event["reason"])
        style = "yellow" if reason == "Evicted" else "red" if event["warning"] else ""
        told = Text.assemble(self._name(model), " ", (WORDS.get(reason, reason), style))
        if reason not in QUIET:
            told.append(f": {event['message']}", style="dim")
        self._row(float(event["at"]), "corral", told)

    def answer(self, answer: Answer) -> None:
        held = f"waited {answer.held_ms / 1000:.2f} s for it to wake, " if answer.held_ms is not None else "was awake, "
        speed = answer.done - answer.first
        rate = f", then {(answer.pieces - 1) / speed:.0f} pieces/s" if answer.pieces > 2 and speed > 0 else ""
        shown = " ".join(answer.text.split())
        self._row(answer.done, answer.model, Text(shown if len(shown) < 200 else shown[:197] + "...", style=self._colour(answer.model)))
        self._row(None, "", Text(f"{held}first words after {answer.to_first:.2f} s{rate}", style="dim"))

    def memory(self, resident: Mapping[str, int], capacity: int, margin: int) -> None:
        """A bar of the budget: who holds how much of it now."""
        bar = Text("[")
        used = 0
        for model, count in resident.items():
            cells = max(1, round(count * BAR / capacity))
            used += cells
            label = model[: cells - 1] if cells > 3 else ""
            bar.append(label.center(cells, " "), style=f"reverse {self._colour(model)}")
        bar.append("·" * max(0, BAR - used), style="dim")
        bar.append("] ")
        told = ", ".join(f"{model} {format_rounded(count)}" for model, count in resident.items()) or "nobody"
        bar.append(f"{told} of {format_rounded(capacity - margin)}", style="dim")
        self._row(None, "", bar)

    def budget(self, needs: Mapping[str, int], capacity: int, margin: int) -> None:
        table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
        table.add_column("model")
        table.add_column("needs", justify="right")
        for model, count in needs.items():
            table.add_row(self._name(model), format_rounded(count))
        table.add_row("all three", format_rounded(sum(needs.values())))
        table.add_row(Text("the budget", style="bold"), Text(format_rounded(capacity - margin), style="bold"))
        self.console.print(table)

    def summary(self, answers: Sequence[Answer], evictions: int) -> None:
        self.heading("In short")
        table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
        for column, justify in (("asked", "left"), ("wake", "right"), ("first words", "right"), ("whole answer", "right")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for answer in answers:
            wake = "-" if answer.held_ms is None else f"{answer.held_ms / 1000:.2f} s"
            table.add_row(self._name(answer.model), wake, f"{answer.to_first:.2f} s", f"{answer.done - answer.asked:.2f} s")
        self.console.print(table)
        self.console.print(f"{len(answers)} questions, {evictions} evictions, no error, and no request that had to be sent twice.")

    def _row(self, at: float | None, who: str, what: Text) -> None:
        clock = f"{max(at - self.began, 0):6.2f} s" if at is not None else " " * 8
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(width=8)
        line.add_column(width=8)
        line.add_column()
        line.add_row(Text(clock, style="dim"), Text(who, style="bold" if who in {"you", "corral"} else self._colour(who)), what)
        self.console.print(line)

    def _colour(self, model: str) -> str:
        return COLOURS[self.models.index(model) % len(COLOURS)] if model in self.models else ""

    def _name(self, model: str) -> Text:
        return Text(model, style=f"bold {self._colour(model)}")


def needs_of(models: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Bytes that each model is counted with, by its own status."""
    return {model["metadata"]["name"]: parse_quantity(model["status"]["memory"]["required"]) for model in models}
