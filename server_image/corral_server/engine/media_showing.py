"""Pictures and audio on their way into the sequences: encoded beside the inference thread, decoded between its steps, one at a time.

Other requests go on meanwhile: what is being encoded holds up its own request only.
"""

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from corral_server.engine.aside import Aside
from corral_server.engine.jobs import Job
from corral_server.engine.media_marks import MediaPrompt, Span
from corral_server.engine.sequences import Sequences, Slot
from corral_server.engine.telling import Teller

if TYPE_CHECKING:
    # Its library is loaded only where there is a projector.
    from corral_server.engine.media_projector import Projector

Evaluated = Callable[[Slot, list[int], int, bool], None]


class Showing:
    def __init__(
        self, projector: "Projector", context: Any, aside: Aside, *,
        sequences: Sequences, teller: Teller, evaluated: Evaluated, out_of_cells: Callable[[list[Slot]], list[Slot] | None],
        failed: Callable[[list[Slot], int], None],
    ) -> None:  # fmt: skip
        self._projector = projector
        self._context = context
        self._aside = aside
        self._evaluated = evaluated
        self._out_of_cells = out_of_cells
        self._failed = failed
        self._sequences = sequences
        self._teller = teller

    def step(self, active: list[Slot]) -> list[Slot]:
        """Move the pictures that come next on; the slots whose next token is text."""
        due = [(s, s.job, span) for s in active if s.job is not None and (span := _next(s)) is not None]
        if not due:
            return active
        for _, job, span in due:
            if span.embedding is None and job.media is not None:
                self._encode(job, job.media, span)
        ready = next(((s, job, span) for s, job, span in due if span.embedding is not None), None)
        if ready is not None:
            active = self._decode(active, *ready)
        return [s for s in active if s.runs and _next(s) is None]

    def _encode(self, job: Job, prompt: MediaPrompt, span: Span) -> None:
        job.encoding = True

        def done(future: Future[Any]) -> None:
            job.encoding = False
            span.embedding = future.result()
            # It may have had to give way meanwhile, and may have got another slot.
            place = next((s for s in self._sequences.slots if s.job is job), None)
            if place is not None and span.embedding is None and not job.cancelled:
                self._teller.failed(job, "media_failed", "the projector could not encode an image or a piece of audio of this request")
            if place is not None and (span.embedding is None or job.cancelled):
                self._sequences.free(place)

        self._aside.run(lambda: self._projector.encode(prompt, span), done, long=True)

    def _decode(self, active: list[Slot], slot: Slot, job: Job, span: Span) -> list[Slot]:
        last = span.start + span.count == len(job.tokens)
        while True:
            code, index = self._projector.decode(self._context, span, job.position(span.start), slot.id, output=last)
            if code == 0:
                span.embedding = None
                self._evaluated(slot, [span.mark] * span.count, index, last)
                return active
            if code != 1:
                self._failed(active, code)
                return []
            self._sequences.cut(slot)
            survivors = self._out_of_cells(active)
            if survivors is None:
                return []
            active = survivors
            if slot not in active:
                return active


def _next(slot: Slot) -> Span | None:
    job = slot.job
    return job.media.starting(len(slot.held)) if job is not None and job.media is not None else None
