"""What is said of an answer as it grows: the events of its tokens, of its prompt's progress and of its end.

Knows nothing of slots or cells: it turns chosen tokens into events and says when an answer is over.
"""

import time
from typing import Any

from corral_server.channel import Message
from corral_server.engine import media_marks
from corral_server.engine.jobs import Job, RefusedError
from corral_server.engine.sampling import Choice
from corral_server.engine.vocabulary import Vocabulary


class Teller:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.events: list[Message] = []

    def say(self, event: Message) -> None:
        self.events.append(event)

    def take(self) -> list[Message]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    def token(self, job: Job, choice: Choice) -> bool:
        """A token was chosen; True when it ended the answer."""
        job.sampler.accept(choice.token)
        if not job.first_token:
            job.first_token = time.perf_counter()
        job.tokens.append(choice.token)
        if not job.announced:
            job.announced = True
            self.events.append(
                {"i": job.id, "start": {"prompt": job.prompt_count, "cached": job.cached, "slot": job.placed}, **self._prompt_scores(job)}
            )
        if self._vocabulary.ends(choice.token):
            # It has no text, but whoever asks for tokens gets all of them.
            job.unsaid += 1
            self.end(job, "stop")
            return True
        delta = job.text.feed(self._vocabulary.piece(choice.token, special=choice.token in job.preserved))
        event: Message = {"i": job.id, "d": delta}
        if job.params.n_probs:
            event["lp"] = self._probabilities(choice)
        over = "stop" if job.text.stopped_by is not None else "length" if job.generated >= job.limit else ""
        if job.lines is not None and delta and not over:
            event["d"], ended = job.lines.cut(delta, (time.perf_counter() - job.first_token) * 1e3)
            over = "length" if ended else ""
            if ended:
                job.text.drop()
        if not (over or delta or job.params.n_probs):
            job.unsaid += 1
            return False
        if job.tells_tokens:
            event["t"] = job.tokens[-1 - job.unsaid :]
        if job.tells_progress:
            event["u"] = job.usage()
        if job.unsaid:
            event["n"] = job.unsaid + 1
            job.unsaid = 0
        self.events.append(event)
        if over:
            self.end(job, over)
        return bool(over)

    def progress(self, job: Job, processed: int) -> None:
        """How much of its prompt has been evaluated, for those who asked to hear it."""
        if job.tells_progress:
            elapsed = (time.perf_counter() - job.started) * 1e3
            share = {"total": job.prompt_count, "cache": max(job.cached, 0), "processed": processed, "time_ms": elapsed}
            self.events.append({"i": job.id, "pp": share})

    def end(self, job: Job, reason: str) -> None:
        rest = job.text.finish()
        event: Message = {"i": job.id, "f": reason, "u": job.usage(), **self._prompt_scores(job)}
        if rest:
            event["d"] = rest
        if job.text.stopped_by is not None:
            event["stop"] = job.text.stopped_by
        if reason == "length" and job.crowded:
            event["full"] = True
        if job.tells_tokens and job.unsaid:
            event["t"] = job.tokens[-job.unsaid :]
        if job.tells_prompt:
            event["prompt"] = self._text(job.tokens[: job.prompt_count])
            if job.params.ignore_eos:
                event["ends"] = self._vocabulary.end_tokens()
        if job.tells_tokens or job.tells_prompt:
            event["slot"] = job.placed
        self.events.append(event)

    def failed(self, job: Job, code: str, message: str, *, retry: bool = True) -> None:
        """`retry`: whether it may go better another time."""
        self.events.append(RefusedError(500, code, message, details={"retry": retry}).event(job.id))

    def _text(self, tokens: list[int]) -> str:
        return b"".join(self._vocabulary.piece(t, special=True) for t in media_marks.words(tokens)).decode("utf-8", "replace")

    def _probabilities(self, choice: Choice) -> list[Any]:
        return [self._scored(choice.token, choice.logprob or 0.0), [self._scored(t, p) for t, p in choice.top]]

    def _prompt_scores(self, job: Job) -> Message:
        """What was asked about the prompt's tokens, told once."""
        scores, job.scores = job.scores, None
        if scores is None:
            return {}
        return {"pl": [[self._scored(job.tokens[0], None), []], *(self._probabilities(c) for c in scores.rows)]}

    def _scored(self, token: int, logprob: float | None) -> list[Any]:
        return [token, list(self._vocabulary.piece(token, special=True)), None if logprob is None else max(logprob, -9999.0)]
