"""What the draft model says of all answers at once: before each step it catches up with them and guesses on, one small batch a token.

Owns the draft's context and what its cells hold of each slot. It must never fail a request or hold one up: without cells, or behind by a long
prompt, there is no guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from corral_server.engine.batch import Batch
from corral_server.engine.draft_model import DraftModel
from corral_server.engine.drafting import MOST, ModelDraft
from corral_server.engine.library import L, floats_at, get_logits_ith
from corral_server.engine.scheduling import common_prefix
from corral_server.engine.sequences import Slot
from corral_server.engine.vocabulary import Vocabulary

_WORTH_BORROWING = 64


@dataclass(eq=False)
class _Guess:
    """One answer's guess in the making."""

    slot: int
    tokens: Sequence[int]
    draft: ModelDraft
    most: int
    found: list[int] = field(default_factory=list)
    row: int = -1
    """Where its next token's logits are; -1 while it has none."""


def _worth_waiting(guess: _Guess, start: int, other: _Guess) -> bool:
    """Whether most of what one lacks is being evaluated for another answer: answers to one prompt begin together."""
    return len(guess.tokens) - start > _WORTH_BORROWING and common_prefix(other.tokens, guess.tokens) >= start + _WORTH_BORROWING


class Drafter:
    def __init__(self, draft: DraftModel, vocabulary: Vocabulary) -> None:
        self._context = draft.context
        self._memory = L.llama_get_memory(draft.context)
        self._batch = Batch(draft.plan.batch)
        self._length = draft.plan.context_length
        self._size = draft.vocabulary
        self._vocabulary = vocabulary
        self._held: list[list[int]] = [[] for _ in range(draft.plan.slots)]

    def guess(self, slots: Sequence[Slot], active: Sequence[Slot]) -> None:
        """Give those of the active slots that generate their guesses for the next step."""
        for slot in slots:
            if slot.job is None and len(self._held[slot.id]) > len(slot.held):
                self._keep(slot.id, len(slot.held))
        wanted = [w for w in map(self._wanted, active) if w is not None]
        if not wanted:
            return
        ready = self._catch_up(wanted)
        while ready:
            ready = self._one_further(ready, wanted)

    def _wanted(self, slot: Slot) -> _Guess | None:
        job = slot.job
        if job is None or job.searching or not isinstance(job.draft, ModelDraft) or not job.generated or len(job.tokens) - len(slot.held) != 1:
            return None
        room = min(MOST, job.limit - job.generated - 1, self._length - len(job.tokens))
        most = job.draft.due(room) if room > 0 else 0
        return _Guess(slot.id, job.tokens, job.draft, most) if most > 0 else None

    def _catch_up(self, wanted: list[_Guess]) -> list[_Guess]:
        """Evaluate what the draft has not seen of them, those who lack least first, a batch at most; those who now lack nothing."""
        self._batch.clear()
        starts = {w: self._start(w) for w in wanted}
        fed: list[tuple[_Guess, Sequence[int]]] = []
        for guess in sorted(wanted, key=lambda w: len(w.tokens) - starts[w]):
            start = starts[guess]
            if any(_worth_waiting(guess, start, other) for other, _ in fed):
                continue
            piece = guess.tokens[start : start + self._batch.room]
            if not piece:
                break
            if max(piece) >= self._size:
                # A word that only the model itself has.
                guess.draft.give_up()
                continue
            whole = start + len(piece) == len(guess.tokens)
            index = self._batch.add(piece, start, guess.slot, outputs="last" if whole else "none")
            guess.row = index if whole else -1
            fed.append((guess, piece))
        if not fed or not self._decode(wanted):
            return []
        for guess, piece in fed:
            self._held[guess.slot] += piece
        return [g for g, _ in fed if g.row >= 0]

    def _one_further(self, ready: list[_Guess], wanted: list[_Guess]) -> list[_Guess]:
        """Read the next token of each; evaluate those that go on."""
        onward = []
        for guess in ready:
            token = self._choose(guess)
            if token is not None:
                guess.found.append(token)
            if token is None or len(guess.found) >= guess.most or self._vocabulary.ends(token):
                guess.draft.offer(len(guess.tokens), guess.found)
            else:
                onward.append(guess)
        self._batch.clear()
        for guess in onward:
            guess.row = self._batch.add(guess.found[-1:], len(self._held[guess.slot]), guess.slot, outputs="last")
        if not onward or not self._decode(wanted):
            for guess in onward:
                guess.draft.offer(len(guess.tokens), guess.found)
            return []
        for guess in onward:
            self._held[guess.slot].append(guess.found[-1])
        return onward

    def _choose(self, guess: _Guess) -> int | None:
        """The likeliest token, when it is likely enough and the model itself has it."""
        logits = floats_at(get_logits_ith(self._context, guess.row), self._size)
        token = int(logits.argmax())
        share = 1.0 / float(np.exp(logits - logits[token]).sum())
        # Figures that are none compare as false.
        return token if share >= guess.draft.bounds.sure and token < self._vocabulary.size else None

    # --- cells

    def _start(self, guess: _Guess) -> int:
        """How much of the answer the draft's cells hold, after taking what another slot's hold of it; its last token is always evaluated anew."""
        start = min(common_prefix(self._held[guess.slot], guess.tokens), len(guess.tokens) - 1)
        if len(guess.tokens) - start > _WORTH_BORROWING:
            lengths = [(min(common_prefix(h, guess.tokens), len(guess.tokens) - 1), s) for s, h in enumerate(self._held) if s != guess.slot]
            length, source = max(lengths, default=(0, 0))
            if length >= start + _WORTH_BORROWING:
                self._keep(guess.slot, 0)
                L.llama_memory_seq_cp(self._memory, source, guess.slot, 0, length)
                self._held[guess.slot] = self._held[source][:length]
                return length
        self._keep(guess.slot, start)
        return start

    def _keep(self, slot: int, count: int) -> None:
        if count < len(self._held[slot]):
            L.llama_memory_seq_rm(self._memory, slot, count or -1, -1)
            del self._held[slot][count:]

    def _decode(self, wanted: list[_Guess]) -> bool:
        """Whether it went well. When cells are short, those who do not guess now give theirs, then the longest answer goes without guesses."""
        code = self._batch.decode(self._context)
        if code == 1 and self._drop_others({w.slot for w in wanted}):
            code = self._batch.decode(self._context)
        if code == 1:
            longest = max(wanted, key=lambda w: len(w.tokens))
            longest.draft.give_up()
            self._keep(longest.slot, 0)
        elif code != 0:
            L.llama_memory_clear(self._memory, True)
            for held in self._held:
                held.clear()
            for guess in wanted:
                guess.draft.give_up()
        return code == 0

    def _drop_others(self, busy: set[int]) -> bool:
        idle = [s for s, held in enumerate(self._held) if held and s not in busy]
        for slot in idle:
            self._keep(slot, 0)
        return bool(idle)
