"""What `corral get`, `explain` and `top` print of an object as the API holds it."""

import pytest

from corral import show

NOW = 1_795_257_000.0  # 2026-11-21T10:30:00Z


def condition(kind, status, reason, message=""):
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-11-21T10:29:30Z"}


WAITING = {
    "metadata": {"namespace": "models", "name": "llama-70", "creationTimestamp": "2026-11-19T10:30:00Z"},
    "status": {
        "conditions": [condition("Ready", "True", "Ready"), condition("Loaded", "False", "WaitingForMemory", "needs 41.2Gi on one node.")],
        "replicas": 1,
        "servedNames": ["models/llama-70", "llama-70", "big"],
        "lastUsed": "2026-11-21T10:29:00Z",
        "memory": {"required": "41Gi", "estimated": {"weights": "39Gi", "kvCache": "2Gi", "total": "41Gi"}},
        "placements": [{"replica": "llama-70-1-0", "node": "gpu-1", "devices": ["0", "1"], "state": "Sleeping", "since": "2026-11-21T10:20:00Z"}],
        "explanation": {
            "reason": "WaitingForMemory",
            "need": "41Gi",
            "candidates": [
                {
                    "node": "gpu-1",
                    "devices": ["0", "1"],
                    "capacity": "48Gi",
                    "margin": "1Gi",
                    "free": "3.1Gi",
                    "freeable": "20.9Gi",
                    "refused": [{"model": "qwen-7b", "reason": "InFlight"}, {"model": "mistral", "reason": "Young", "until": "2026-11-21T10:30:11Z"}],
                }
            ],
            "more": 2,
            "next": {"at": "2026-11-21T10:30:17Z", "what": "the turn of qwen-7b ends"},
        },
    },
}
NEW = {"metadata": {"namespace": "models", "name": "new"}}
STALLED = {
    "metadata": {"namespace": "other", "name": "mistral"},
    "status": {
        "conditions": [
            condition("Ready", "False", "DoesNotFit", "needs 96Gi"),
            condition("Stalled", "True", "DoesNotFit", "needs 96Gi"),
            condition("Loaded", "False", "Idle"),
        ]
    },
}


@pytest.mark.parametrize(("seconds", "told"), [(-3, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d")])
def test_ages(seconds, told):
    assert show.age(seconds) == told


def test_the_table_of_models():
    lines = [line.plain for line in show.models_table([WAITING, NEW, STALLED], NOW, namespaces=True)]
    assert lines == [
        "NAMESPACE   NAME       READY     STATE              REPLICAS   LOADED   NODE    MEMORY   LASTUSED   AGE",
        "models      llama-70   True      WaitingForMemory   1          0        gpu-1   41Gi     60s        2d",
        "models      new        Unknown                      0          0",
        "other       mistral    False     DoesNotFit         0          0",
    ]


def test_the_explanation_has_the_arithmetic_and_who_stays_and_why():
    assert list(show.explanation(WAITING, NOW)) == [
        "models/llama-70 is WaitingForMemory",
        "  Loaded=False (WaitingForMemory), 30s ago: needs 41.2Gi on one node.",
        "  memory: 41Gi estimated = weights 39Gi + KV cache 2Gi",
        "  replica llama-70-1-0 on gpu-1 (0, 1): Sleeping, for 10m",
        "  needs 41Gi:",
        "    gpu-1 (0, 1): 48Gi less 1Gi margin, free 3.1Gi, could free 20.9Gi",
        "      qwen-7b stays: InFlight",
        "      mistral stays: Young until 2026-11-21T10:30:11Z (in 11 s)",
        "    and 2 more",
        "  next: the turn of qwen-7b ends (2026-11-21T10:30:17Z (in 17 s))",
    ]


def test_a_model_that_nobody_has_looked_at_is_explained_too():
    assert list(show.explanation(NEW, NOW)) == ["models/new is not looked at yet"]


def test_the_table_of_devices_and_replicas():
    device = {"node": "gpu-1", "id": "0", "capacity": "24Gi", "committed": "20.9Gi", "free": "2.1Gi", "models": 3}
    lines = [line.plain for line in show.devices_table([{"metadata": {"name": "default"}, "status": {"devices": [device]}}])]
    assert lines[1].split() == ["default", "gpu-1", "0", "24Gi", "20.9Gi", "2.1Gi", "3"]
    assert [line.plain for line in show.replicas_table([WAITING, NEW], NOW)][1].split()[:5] == [
        "llama-70",
        "llama-70-1-0",
        "gpu-1",
        "0,1",
        "Sleeping",
    ]


@pytest.mark.parametrize("name", ["llama-70", "models/llama-70", "big"])
def test_a_model_is_found_by_any_of_its_names(name):
    assert show.find_model([NEW, WAITING], name) is WAITING


def test_an_unknown_name_finds_nothing():
    assert show.find_model([NEW, WAITING], "nope") is None
