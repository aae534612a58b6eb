"""How the next token is chosen from one row of logits.

Arg-max when greedy; otherwise a shortlist of the few best, because building llama.cpp's candidate array over a big vocabulary costs more than the
decode. A grammar is asked about the chosen token first and only searched when it refuses.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from corral_server.engine.budget import Budget
from corral_server.engine.chain import Chain
from corral_server.engine.grammar import Grammar
from corral_server.engine.library import FloatArray

_WIDE = 512


@dataclass(frozen=True)
class SamplingParams:
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    n_probs: int = 0
    post_sampling: bool = False
    """Probabilities are those after all filters, not log probabilities of the model."""
    ignore_eos: bool = False
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    min_keep: int = 0
    samplers: tuple[str, ...] = ()
    """An order of one's own; empty for llama.cpp's."""
    context: int = 0

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "SamplingParams":
        known = {k: v for k, v in raw.items() if k in cls.__dataclass_fields__ and v is not None}
        for name in ("samplers", "dry_sequence_breakers"):
            if name in known:
                known[name] = tuple(known[name])
        if "logit_bias" in known:
            known["logit_bias"] = {int(k): float("-inf") if v is None else float(v) for k, v in known["logit_bias"].items()}
        return cls(**known)

    @property
    def needs_chain(self) -> bool:
        """Whether it asks for what only llama.cpp's samplers do."""
        return bool(
            self.samplers or self.mirostat or self.dry_multiplier or self.dynatemp_range or self.min_keep > 1 or self.top_n_sigma > 0
        )  # fmt: skip

    @property
    def penalises(self) -> bool:
        return self.repeat_last_n != 0 and (self.repeat_penalty != 1.0 or bool(self.frequency_penalty) or bool(self.presence_penalty))


@dataclass(frozen=True)
class Choice:
    token: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


class BrokenLogits(ArithmeticError):  # noqa: N818  named for what is broken
    """A model evaluated to something that is no number, so that there is no next token."""


class Sampler:
    """The sampling state of one answer."""

    def __init__(
        self, params: SamplingParams, grammar: Grammar | None = None, never: Sequence[int] = (), chain: Chain | None = None,
        budget: Budget | None = None,
    ) -> None:  # fmt: skip
        self.params = params
        self._budget = budget
        self._chain = chain
        self._rng = np.random.Generator(np.random.PCG64(params.seed))
        self._recent: list[int] = []
        self._counts: Counter[int] = Counter()
        self._grammar = grammar
        bias = dict(params.logit_bias)
        bias.update(dict.fromkeys(never, float("-inf")))
        self._bias_ids = np.fromiter(bias, dtype=np.int64, count=len(bias))
        self._bias_values = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))
        # The chain has penalties of its own, at its own place.
        self._penalises = params.penalises and chain is None
        self._adjusts = bool(bias) or self._penalises
        self._left: tuple[Any, Any] = (np.empty(0, dtype=np.int64), np.empty(0))

    def sample(self, logits: FloatArray) -> Choice:
        """The next token, however long the grammar takes."""
        choice = self.try_sample(logits)
        return choice if choice is not None else self.search(logits)

    def try_sample(self, logits: FloatArray) -> Choice | None:
        """The next token; None when the grammar refuses the first choice, so that all candidates have to be searched. BrokenLogits when the row
        has values that are no numbers: whatever came of them would look like an answer, and some of llama.cpp's samplers end the process.
        """
        # One pass over the row serves the check and the choice: no number is greater than one that is none.
        best = int(logits.argmax())
        if not logits[best] < np.inf:
            raise BrokenLogits(
                "the model evaluated to values that are no numbers (NaN or infinite): its file, its adapter or its KV cache type is broken"
            )
        if self._budget is not None and (forced := self._budget.forced()) is not None:
            if self._grammar is None or self._grammar.allows(forced):
                return with_probabilities(logits, forced, self.params.n_probs) if self.params.n_probs else Choice(forced)
            self._budget.refuse()
        token = self._choose(self._adjusted(logits)) if self._adjusts else self._choose(logits, best)
        if self._grammar is not None and not self._grammar.allows(token):
            return None
        return self._chosen(logits, token)

    def search(self, logits: FloatArray) -> Choice:
        """The next token among those that the grammar allows: milliseconds, tens of them for a big vocabulary where everything may come."""
        row = self._adjusted(logits) if self._adjusts else logits
        if self._grammar is not None:
            enough = 0 if self._chain is not None else 1 if self.params.temperature <= 0 else self.params.top_k
            row = self._grammar.masked(row, max(enough, 0))
        return self._chosen(logits, self._choose(row))

    def _chosen(self, logits: FloatArray, token: int) -> Choice:
        if self.params.n_probs and self.params.post_sampling:
            return self._after_filters(token)
        return with_probabilities(logits, token, self.params.n_probs) if self.params.n_probs else Choice(token)

    def _after_filters(self, token: int) -> Choice:
        ids, weights = self._left
        share = dict(zip(ids.tolist(), (weights / weights.sum()).tolist(), strict=True)) if len(ids) else {token: 1.0}
        top = sorted(((i, p) for i, p in share.items() if p > 0), key=lambda pair: -pair[1])[: self.params.n_probs]
        return Choice(token, share.get(token, 1.0), top)

    def accept(self, token: int) -> None:
        if self._grammar is not None:
            self._grammar.accept(token)
        if self._budget is not None:
            self._budget.accept(token)
        if self._chain is not None:
            self._chain.accept(token)
        if self._penalises:
            self._recent.append(token)
            self._counts[token] += 1
            if 0 < self.params.repeat_last_n < len(self._recent):
                old = self._recent.pop(0)
                self._counts[old] -= 1
                if not self._counts[old]:
                    del self._counts[old]

    def prime(self, prompt: Sequence[int]) -> None:
        """Penalties look back into the prompt, as llama.cpp's do."""
        if self._chain is not None:
            self._chain.prime(prompt)
        if self._penalises:
            last = self.params.repeat_last_n
            for token in prompt[-last:] if last > 0 else prompt:
                self._recent.append(token)
                self._counts[token] += 1

    def __del__(self) -> None:
        # A request that was cancelled while it waited is never run, and so never ended.
        self.close()

    def close(self) -> None:
        if self._grammar is not None:
            self._grammar.close()
        if self._chain is not None:
            self._chain.close()

    def _adjusted(self, logits: FloatArray) -> FloatArray:
        row = logits.copy()
        if len(self._bias_ids):
            row[self._bias_ids] += self._bias_values
        p = self.params
        if self._penalises and self._counts:
            ids = np.fromiter(self._counts, dtype=np.int64, count=len(self._counts))
            counts = np.fromiter(self._counts.values(), dtype=np.float32, count=len(self._counts))
            values = row[ids]
            if p.repeat_penalty != 1.0:
                values = np.where(values <= 0, values * p.repeat_penalty, values / p.repeat_penalty)
            row[ids] = values - counts * p.frequency_penalty - p.presence_penalty
        return row

    def _choose(self, row: FloatArray, best: int | None = None) -> int:
        """`best`: the greatest of the row, where it is known."""
        p = self.params
        if self._chain is not None:
            token = self._chain.choose(row)
            self._left = self._chain.left
            return token
        if best is None:
            best = int(row.argmax())
        if p.temperature <= 0:
            return best
        ids, values = _shortlist(row, p.top_k, float(row[best]))
        ids, weights = _filtered(ids, values, p, self._rng)
        if p.post_sampling:
            self._left = ids, weights
        total = np.cumsum(weights)
        at = int(np.searchsorted(total, self._rng.random() * total[-1], side="right"))
        return int(ids[min(at, len(ids) - 1)])


def with_probabilities(row: FloatArray, token: int, alternatives: int) -> Choice:
    """A token with its log probability, and the most likely ones with theirs."""
    peak = float(row.max())
    norm = peak + float(np.log(np.exp((row - peak).astype(np.float64)).sum()))
    count = min(alternatives, len(row))
    ids, values = _shortlist(row, count, peak)
    top = [(int(i), float(v) - norm) for i, v in zip(ids[:count], values[:count], strict=True)]
    return Choice(token, float(row[token]) - norm, top)


def _shortlist(row: FloatArray, top_k: int, peak: float) -> tuple[Any, FloatArray]:
    """The `top_k` largest (all, when 0) in falling order, by a threshold below the greatest, `peak`, rather than a sort of everything."""
    size = len(row)
    if top_k <= 0 or top_k >= size:
        order = np.argsort(-row, kind="stable")
        return order, row[order]
    reach = 8.0
    ids = np.flatnonzero(row >= peak - reach)
    while len(ids) < top_k and reach < 1e4:
        reach *= 2
        ids = np.flatnonzero(row >= peak - reach)
    if len(ids) < top_k:
        ids = np.arange(size)
    values = row[ids]
    if len(ids) > max(_WIDE, 4 * top_k):
        part = np.argpartition(-values, top_k - 1)[:top_k]
        ids, values = ids[part], values[part]
    order = np.argsort(-values, kind="stable")[:top_k]
    return ids[order], values[order]


def _filtered(ids: Any, values: FloatArray, p: SamplingParams, rng: np.random.Generator) -> tuple[Any, Any]:
    """llama.cpp's default order of filters after top-k: typical, top-p, min-p, xtc, then the temperature."""
    if p.typical_p < 1.0:
        probs = _softmax(values)
        logs = np.log(np.maximum(probs, 1e-30))
        entropy = -(probs * logs).sum()
        order = np.argsort(np.abs(-logs - entropy), kind="stable")
        count = int(np.searchsorted(np.cumsum(probs[order]), p.typical_p)) + 1
        chosen = np.sort(order[:count])
        ids, values = ids[chosen], values[chosen]
    if p.top_p < 1.0:
        total = np.cumsum(_softmax(values))
        count = int(np.searchsorted(total, p.top_p)) + 1
        ids, values = ids[:count], values[:count]
    if p.min_p > 0.0:
        keep = values >= values[0] + np.log(p.min_p)
        ids, values = ids[keep], values[keep]
    if p.xtc_probability > 0.0 and p.xtc_threshold <= 0.5 and len(ids) > 1 and rng.random() < p.xtc_probability:
        above = int((_softmax(values) >= p.xtc_threshold).sum())
        if above > 1:
            ids, values = ids[above - 1 :], values[above - 1 :]
    return ids, _softmax(values / p.temperature)


def _softmax(values: Any) -> Any:
    shifted = np.exp((values - values.max()).astype(np.float64))
    return shifted / shifted.sum()
