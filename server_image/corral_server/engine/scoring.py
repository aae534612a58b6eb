"""How likely each token of a prompt was, for those who ask to have it repeated with log probabilities.

Every scored token takes one of the context's few rows of output, so such a prompt goes through the model in small pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from corral_server.engine.library import floats_at, get_logits_ith
from corral_server.engine.sampling import Choice, with_probabilities


@dataclass
class PromptScores:
    """One prompt's scores as it is evaluated; the first token has none, for nothing came before it."""

    alternatives: int
    rows: list[Choice] = field(default_factory=list)

    def pending(self, held: int, prompt_count: int) -> bool:
        """Whether the next piece still has tokens whose successor is part of the prompt."""
        return held < prompt_count - 1

    def take(self, context: Any, last_index: int, tokens: Sequence[int], start: int, count: int, vocabulary_size: int) -> None:
        """Score what follows each of `count` evaluated tokens from position `start`; the last of them is output `last_index` of the batch."""
        for offset in range(count):
            following = start + offset + 1
            if following < len(tokens) and following == len(self.rows) + 1:
                row = floats_at(get_logits_ith(context, last_index - count + 1 + offset), vocabulary_size)
                self.rows.append(with_probabilities(row, tokens[following], self.alternatives))
