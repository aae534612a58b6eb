"""The status that the operator writes is always one that the API server takes."""

from datetime import UTC, datetime, timedelta

from corral.api.base import MESSAGE_LIMIT, Condition, bounded
from corral.api.mdstatus import CANDIDATES, BackOff, Candidate, Explanation, LastLoad, Memory, ModelDeploymentStatus, RefusedVictim
from corral.api.types import MI

NOW = datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC)


def test_times_of_conditions_are_whole_seconds() -> None:
    condition = Condition(type="Ready", status="True", reason="Idle", last_transition_time=NOW, observed_generation=3)
    assert condition.dump() == {
        "type": "Ready",
        "status": "True",
        "reason": "Idle",
        "message": "",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
        "observedGeneration": 3,
    }


def test_long_messages_are_cut_at_a_character() -> None:
    condition = Condition(type="Loaded", status="False", reason="WaitingForMemory", message="ü" * MESSAGE_LIMIT, last_transition_time=NOW)
    assert len(condition.message.encode()) <= MESSAGE_LIMIT
    assert condition.message.endswith("ü …")
    assert bounded("short") == "short"


def test_lists_are_cut_to_their_bounds() -> None:
    refused = [RefusedVictim(model=f"m{index}", reason="InFlight") for index in range(40)]
    explanation = Explanation(
        reason="WaitingForMemory", candidates=[Candidate(node=f"n{index}", refused=refused) for index in range(20)], more=12, need=MI
    )
    assert len(explanation.candidates) == CANDIDATES
    assert len(explanation.candidates[0].refused) == 16


def test_a_status_survives_the_way_through_the_api() -> None:
    status = ModelDeploymentStatus.model_validate(
        {
            "observedGeneration": 2,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Idle", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"}],
            "replicas": 0,
            "memory": {"required": "536Mi", "estimated": {"weights": "94Mi", "total": "536Mi"}},
            "explanation": {"reason": "WaitingForMemory", "next": {"at": "2026-01-02T03:05:05Z", "what": "the turn of qwen ends"}},
            "backoff": [{"node": "gpu-1", "failures": 2, "until": "2026-01-02T03:05:05Z", "reason": "LoadFailed", "message": "m"}],
            "estimate": {"ok": True, "total": 5, "perLayer": [[30, 2600000, 12582912]], "source": "hf://a/b/c"},
            "lastLoad": {"total": "3s400ms", "download": "0s"},
            "wish": {"id": 7, "action": "Load", "gateway": "g"},
        }
    )
    assert ModelDeploymentStatus.model_validate(status.dump()) == status
    assert status.condition("Ready") is not None
    assert status.condition("Stalled") is None
    assert status.dump()["estimate"]["perLayer"] == [[30, 2600000, 12582912]]


def test_fields_are_built_by_their_python_names() -> None:
    status = ModelDeploymentStatus(
        memory=Memory(required=536 * MI),
        last_load=LastLoad(total=timedelta(seconds=3.4)),
        backoff=[BackOff(node="n", failures=1, until=NOW)],
        last_used=NOW,
    )
    told = status.dump()
    assert told["memory"] == {"required": "536Mi"}
    assert told["lastLoad"] == {"total": "3s400ms"}
    assert told["lastUsed"] == "2026-01-02T03:04:05.600Z"
    assert told["backoff"][0]["until"] == "2026-01-02T03:04:05.600Z"
