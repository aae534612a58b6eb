"""Explanations, word for word: for each thing that can be in a model's way, the arithmetic that a reader needs."""

from __future__ import annotations

import json

from tests.domain.builders import NOW, asleep, cluster, gib, loaded, model, waiting

from corral.domain import reasons
from corral.domain.decide import decide
from corral.domain.model import DeviceKind, Footprint, Pool, ReplicaState
from corral.domain.plan import Evict, Load


def explained(state, name="new", now=NOW):
    return decide(state.snapshot(), now).verdicts[f"m/{name}"].explanation


def test_fits_now():
    state = cluster(models=[model("new", 8)], replicas=[asleep("new-0", "new")], demand={"new": waiting()})
    plan = decide(state.snapshot(), NOW)
    (load,) = plan.actions
    assert isinstance(load, Load)
    assert load.message == "m/new: commits 8Gi on n1/gpu0 (waited for since 15:06:39Z; 15Gi stay free)."
    told = plan.verdicts["m/new"].explanation
    assert (told.reason, told.message) == (reasons.LOADING, "Loads 8Gi on n1/gpu0.")


def test_must_evict():
    state = cluster(
        models=[model("old", 20), model("new", 20)], replicas=[loaded("old-0", "old", 20), asleep("new-0", "new")], demand={"new": waiting()}
    )
    plan = decide(state.snapshot(), NOW)
    (evict,) = plan.actions
    assert isinstance(evict, Evict)
    assert evict.message == "m/old makes room for m/new, which needs 20Gi on n1/gpu0: unused since 15:04:40Z."
    told = plan.verdicts["m/new"].explanation
    assert (told.reason, told.message) == (reasons.EVICTING, "Room for 20Gi is being made on n1/gpu0.")


def test_waits_for_a_turn():
    state = cluster(
        models=[model("qwen", 12), model("mistral", 9), model("new", 20)],
        replicas=[
            loaded("qwen-0", "qwen", 12, in_flight=2, turn_started=NOW - 12),
            loaded("mistral-0", "mistral", 9, age=19, used=5),
            asleep("new-0", "new"),
        ],
        demand={"new": waiting(20)},
    )
    told = explained(state)
    assert told.reason == reasons.WAITING_FOR_TURN
    assert told.message == (
        "needs 20Gi on one device; margin 1Gi per device.\n"
        "n1/gpu0: 24Gi, free 2Gi; not: mistral young until 15:06:51Z, qwen in flight (2).\n"
        "Next: the turn of m/qwen ends at 15:06:58Z."
    )


def test_never_fits():
    state = cluster({"n1/gpu0": 24, "n2/gpu0": 48}, models=[model("new", 96)], demand={"new": waiting()})
    told = explained(state)
    assert told.reason == reasons.DOES_NOT_FIT
    assert told.message == ("needs 96Gi; the largest device of pool default is n2/gpu0 with 48Gi, of which 1Gi stay free as margin: 49Gi too little.")


def test_never_fits_even_over_several():
    big = Footprint(weights=gib(160), kv=0, compute=0, layers=((80, gib(2), 0),))
    state = cluster({"n1/gpu0": 24, "n1/gpu1": 24}, models=[model("new", footprint=big, max_devices=2)], demand={"new": waiting()})
    assert explained(state).message == (
        "needs 160Gi; the largest device of pool default is n1/gpu1 with 24Gi, of which 1Gi stay free as margin: 137Gi too little. "
        "Nor does it fit over 2 devices of one node."
    )


def test_pinned_in_the_way():
    state = cluster(
        models=[model("phi", 14, pinned=True), model("new", 20)],
        replicas=[loaded("phi-0", "phi", 14), asleep("new-0", "new")],
        demand={"new": waiting()},
    )
    told = explained(state)
    assert told.reason == reasons.WAITING_FOR_MEMORY
    assert told.message == "needs 20Gi on one device; margin 1Gi per device.\nn1/gpu0: 24Gi, free 9Gi; not: phi pinned."
    assert told.next is None, "nobody can say when"


def test_margin_in_the_way():
    """It is as large as the device, and the margin keeps it out."""
    state = cluster(models=[model("new", 23.5)], demand={"new": waiting()})
    assert explained(state).message == (
        "needs 23.5Gi; the largest device of pool default is n1/gpu0 with 24Gi, of which 1Gi stay free as margin: 512Mi too little."
    )


def test_a_device_filled_to_its_margin():
    state = cluster(
        models=[model("a", 14, priority=1), model("new", 9.5)],
        replicas=[loaded("a-0", "a", 14), asleep("new-0", "new")],
        demand={"new": waiting()},
    )
    assert explained(state).message == ("needs 9.5Gi on one device; margin 1Gi per device.\nn1/gpu0: 24Gi, free 9Gi; not: a of higher priority.")


def test_over_several_devices():
    big = Footprint(weights=gib(40), kv=0, compute=0, layers=((80, gib(0.5), 0),))
    state = cluster(
        {"gpu-1/a": 24, "gpu-1/b": 24},
        models=[model("llama", footprint=big, max_devices=2), model("qwen", 20), model("phi", 5, pinned=True)],
        replicas=[
            loaded("qwen-0", "qwen", 20, node="gpu-1", device="a", in_flight=2),
            loaded("phi-0", "phi", 5, node="gpu-1", device="b"),
        ],
        demand={"llama": waiting()},
    )
    told = explained(state, "llama")
    assert told.message == (
        "needs 40Gi on one node (80 layers over at most 2 devices); margin 1Gi per device.\n"
        "gpu-1/a+b: 24Gi + 24Gi, free 21Gi; not: phi pinned, qwen in flight (2)."
    )


def test_host_memory_reads_the_same():
    state = cluster(
        {"cpu-1/host": 16},
        kind=DeviceKind.HOST,
        models=[model("a", 9), model("new", 8)],
        replicas=[loaded("a-0", "a", 9, node="cpu-1", device="host", in_flight=1), asleep("new-0", "new", node="cpu-1", device="host")],
        demand={"new": waiting()},
    )
    assert explained(state).message == (
        "needs 8Gi on one device; margin 1Gi per device.\ncpu-1: 16Gi, free 6Gi; not: a in flight (1).\nNext: the turn of m/a ends at 15:07:10Z."
    )


def test_at_most_eight_places_and_a_count():
    devices = {f"n{number:02}/gpu0": 24.0 for number in range(30)}
    replicas = [loaded(f"a{number:02}", "a", 20, node=f"n{number:02}", in_flight=1) for number in range(30)]
    state = cluster(devices, models=[model("a", 20, max_replicas=30), model("new", 20)], replicas=replicas, demand={"new": waiting()})
    told = explained(state)
    assert len(told.candidates) == 8
    assert told.more == 22
    assert "22 more places left out." in told.message


def test_unplaceable_says_what_is_closed():
    state = cluster(models=[model("new", 8)], demand={"new": waiting()})
    state.put_node(state.nodes["n1"].__class__("n1", "default", ready=False, not_ready_since=NOW - 5))
    told = explained(state)
    assert told.reason == reasons.WAITING_FOR_MEMORY
    assert told.message == "needs 8Gi on one device; no device is open to it now: node not ready (1 device)."


def test_its_own_pod_does_not_answer():
    told = explained(cluster(models=[model("new", 8)], replicas=[asleep("new-0", "new", reachable=False)], demand={"new": waiting()}))
    assert told.message == "needs 8Gi on one device; no device is open to it now: its pod there does not answer (1 device)."


def test_the_same_object_as_json():
    state = cluster(
        models=[model("a", 20), model("new", 20)],
        replicas=[loaded("a-0", "a", 20, in_flight=2), asleep("new-0", "new")],
        demand={"new": waiting()},
        pool=Pool("default"),
    )
    told = json.loads(json.dumps(explained(state).as_json()))
    assert told["candidates"] == [
        {
            "node": "n1",
            "devices": ["gpu0"],
            "capacity": gib(24),
            "margin": gib(1),
            "free": gib(3),
            "need": gib(20),
            "freeable": 0,
            "closed": "",
            "refused": [{"replica": "m/a-0", "model": "m/a", "reason": "InFlight", "until": None, "inFlight": 2}],
        }
    ]
    assert told["next"] == {"at": NOW + 30, "what": "the turn of m/a ends"}


def test_a_download_under_way():
    state = cluster(models=[model("new", 8)], replicas=[asleep("new-0", "new", state=ReplicaState.DOWNLOADING)], demand={"new": waiting()})
    told = explained(state)
    assert (told.reason, told.message) == (reasons.DOWNLOADING, "Downloads on n1/gpu0.")
