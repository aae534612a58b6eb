"""Comparing greedy answers that were computed in differently shaped batches: sums in another order may turn the balance between two equals."""

from typing import Any

NOISE = 0.1
"""In log probability, of `exact_smollm2`, where another shape of batch changes 0.02; a wrong cache or a wrong adapter changes whole units."""


def assert_same_or_tied(alone: dict[str, Any], other: dict[str, Any]) -> None:
    """Both answers of `/completion` with `n_probs` of at least 2; `alone` says how close the best two were where they part."""
    pairs = zip(alone["tokens"], other["tokens"], strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if at is None:
        assert len(alone["tokens"]) == len(other["tokens"])
        return
    best, second = (entry["logprob"] for entry in alone["completion_probabilities"][at]["top_logprobs"][:2])
    assert best - second < NOISE, f"they part at token {at}, where the best was {best - second:.2f} ahead: {alone['content']!r}, {other['content']!r}"
