"""Scenario files: the examples run and hold, and a mistake is named with its field."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from corral.simulate.files import ScenarioError, duration, quantity, read
from corral.simulate.report import summary, timeline
from corral.simulate.world import World

EXAMPLES = Path(__file__).parents[2] / "bench" / "scenarios"


@pytest.mark.parametrize("name", sorted(each.name for each in EXAMPLES.glob("*.yaml")))
def test_the_examples_hold(name):
    result = World(read(yaml.safe_load((EXAMPLES / name).read_text()))).run()
    assert result.failure is None, result.failure
    assert result.answered > 0.9 * result.requests
    assert any("evictions" in line for line in summary(result))
    assert len(list(timeline(result, 5))) == 6


def test_two_busy_models_take_turns():
    result = World(read(yaml.safe_load((EXAMPLES / "two-models-one-gpu.yaml").read_text()))).run()
    assert result.turns >= 3
    assert result.outcomes["answered"] == result.requests


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodse": []}, "the scenario: there is no field 'nodse'"),
        ({"models": [{"name": "a", "size": "ten"}]}, r"models\[0\].size: 'ten' is no quantity; write bytes as 24Gi or 500Mi"),
        ({"models": [{"name": "a"}]}, r"models\[0\]: size is missing"),
        ({"models": []}, "models: at least one is needed"),
        ({"nodes": []}, "nodes: at least one is needed"),
        ({"pool": {"turn": "soon"}}, "pool.turn: 'soon' is no duration"),
        ({"pool": {"policy": "MRU"}}, "pool.policy: 'MRU' is no policy; there are LRU, CostAware"),
        ({"traffic": [{"model": "b", "at": "1s"}]}, r"traffic\[0\].model: there is no model 'b'"),
        ({"traffic": [{"model": "a"}]}, r"traffic\[0\]: either at, or one of every and about is needed"),
        ({"faults": [{"at": "1s", "kind": "fire"}]}, r"faults\[0\].kind: there is no fault 'fire'"),
        ({"faults": [{"at": "1s", "kind": "cordon", "target": "n9"}]}, r"faults\[0\].target: there is no node 'n9'; there are n1"),
    ],
)
def test_a_mistake_is_named(change, message):
    good = {"nodes": [{"name": "n1", "devices": {"g": "24Gi"}}], "models": [{"name": "a", "size": "2Gi"}]}
    read(good)
    with pytest.raises(ScenarioError, match=message):
        read(good | change)


def test_units():
    assert quantity("1.5Gi", "x") == 3 << 29
    assert quantity(12, "x") == 12
    assert duration("250ms", "x") == 0.25
    assert duration("2m", "x") == 120.0
