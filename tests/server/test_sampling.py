"""The sampler on rows of logits, compared with the distribution written out in full."""

import numpy as np
import pytest

from corral_server.engine.sampling import Sampler, SamplingParams


def row(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def frequencies(params: dict, logits: np.ndarray, draws: int = 20000) -> np.ndarray:
    sampler = Sampler(SamplingParams.of({"seed": 7, **params}))
    counts = np.zeros(len(logits))
    for _ in range(draws):
        counts[sampler.sample(logits).token] += 1
    return counts / draws


def softmax(values: np.ndarray) -> np.ndarray:
    e = np.exp(values.astype(np.float64) - values.max())
    return e / e.sum()


def test_temperature_zero_is_the_largest():
    assert Sampler(SamplingParams.of({"temperature": 0})).sample(row(1, 5, 3)).token == 1


def test_without_filters_it_draws_from_the_softmax():
    logits = row(0.1, 2.0, -1.0, 1.0)
    got = frequencies({"temperature": 0.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0}, logits)
    assert np.abs(got - softmax(logits / 0.7)).max() < 0.02


def test_top_k_keeps_the_best_k_even_when_they_are_far_apart():
    logits = np.full(5000, -1000.0, dtype=np.float32)
    logits[[3, 40, 4000]] = [0.0, -50.0, -90.0]
    got = frequencies({"temperature": 40.0, "top_k": 3, "top_p": 1.0, "min_p": 0.0}, logits, 4000)
    assert set(np.flatnonzero(got)) == {3, 40, 4000}


def test_top_p_stops_at_the_first_token_that_reaches_it():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    got = frequencies({"temperature": 1.0, "top_k": 0, "top_p": 0.79, "min_p": 0.0}, logits, 4000)
    assert set(np.flatnonzero(got)) == {0, 1}


def test_min_p_is_relative_to_the_best():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    got = frequencies({"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.25}, logits, 4000)
    assert set(np.flatnonzero(got)) == {0, 1, 2}


def test_the_same_seed_gives_the_same_draws():
    logits = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    draws = [[s.sample(logits).token for _ in range(50)] for s in (Sampler(SamplingParams.of({"seed": 3})) for _ in range(2))]
    assert draws[0] == draws[1]


def test_a_bias_bans_and_forces():
    params = SamplingParams.of({"temperature": 0, "logit_bias": {"1": None, "0": 100.0}})
    assert Sampler(params).sample(row(1, 5, 3)).token == 0


def test_penalties_look_at_what_was_said_and_at_the_prompt():
    sampler = Sampler(SamplingParams.of({"temperature": 0, "presence_penalty": 1.0, "frequency_penalty": 0.6}))
    sampler.prime([1])
    assert sampler.sample(row(1, 2.5, 0)).token == 0
    sampler.accept(0)
    assert sampler.sample(row(1, 2.5, 0)).token == 1


def test_the_penalty_window_forgets():
    sampler = Sampler(SamplingParams.of({"temperature": 0, "presence_penalty": 2.0, "repeat_last_n": 1}))
    sampler.accept(1)
    assert sampler.sample(row(1, 2, 0)).token == 0
    sampler.accept(0)
    assert sampler.sample(row(1, 2, 0)).token == 1


def test_probabilities_are_of_the_models_own_distribution():
    logits = row(0.5, 1.5, -1.0)
    choice = Sampler(SamplingParams.of({"temperature": 0, "n_probs": 2})).sample(logits)
    expected = np.log(softmax(logits))
    assert choice.logprob == pytest.approx(expected[1], abs=1e-5)
    assert [t for t, _ in choice.top] == [1, 0]
    assert choice.top[1][1] == pytest.approx(expected[0], abs=1e-5)
