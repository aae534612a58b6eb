"""The gates: nothing older than what was told before passes, whatever order lists and events come in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from corral.kube.client import MODEL_DEPLOYMENTS
from corral.kube.objects import Gate


class Told:
    def __init__(self) -> None:
        self.now: dict[tuple[str, str], tuple[str, int]] = {}
        self.calls = 0
        self.gate = Gate(MODEL_DEPLOYMENTS, self._put, self._remove)

    def _put(self, obj) -> None:
        assert "managedFields" not in obj["metadata"]
        self.calls += 1
        self.now[obj["metadata"]["namespace"], obj["metadata"]["name"]] = (obj["metadata"]["uid"], int(obj["metadata"]["resourceVersion"]))

    def _remove(self, namespace, name) -> None:
        self.calls += 1
        del self.now[namespace, name]


def obj(uid: str, version: int, name: str = "a") -> dict:
    return {"metadata": {"namespace": "n", "name": name, "uid": uid, "resourceVersion": str(version), "managedFields": []}}


A = ("n", "a")


def test_an_event_that_overtook_a_list_wins():
    told = Told()
    told.gate.event("MODIFIED", obj("u", 7))
    told.gate.put(obj("u", 5))
    told.gate.listed({A}, 5)
    assert told.now == {A: ("u", 7)}
    assert told.calls == 1


def test_a_deletion_is_not_undone_by_an_older_list():
    told = Told()
    told.gate.put(obj("u", 5))
    told.gate.event("DELETED", obj("u", 8))
    told.gate.put(obj("u", 5))
    told.gate.listed({A}, 6)
    told.gate.put(obj("u", 5))
    assert told.now == {}
    told.gate.listed(set(), 9)
    told.gate.put(obj("v", 10))
    assert told.now == {A: ("v", 10)}


def test_an_object_that_went_unseen_goes_with_the_next_list():
    told = Told()
    told.gate.put(obj("u", 5))
    told.gate.put(obj("w", 12, "b"))
    told.gate.listed(set(), 11)
    assert told.now == {("n", "b"): ("w", 12)}


def test_a_namesake_is_another_object():
    told = Told()
    told.gate.put(obj("u", 5))
    told.gate.put(obj("v", 9))
    assert (told.now, told.calls) == ({A: ("v", 9)}, 3)
    told.gate.event("DELETED", obj("u", 8))
    assert told.now == {A: ("v", 9)}


@given(st.data())
def test_any_interleaving_of_events_and_lists_ends_at_the_truth(data):
    """One object lives through creations, changes and deletions; events come in order, lists are taken at any time and told later."""
    history: list[tuple[str, dict]] = []
    version, uid, alive = 1, 0, False
    states: list[tuple[int, dict | None]] = [(0, None)]
    for _ in range(data.draw(st.integers(1, 8))):
        version += 1
        if not alive:
            uid, alive = uid + 1, True
            history.append(("ADDED", obj(f"u{uid}", version)))
        elif data.draw(st.booleans()):
            history.append(("MODIFIED", obj(f"u{uid}", version)))
        else:
            alive = False
            history.append(("DELETED", obj(f"u{uid}", version)))
        kind, last = history[-1]
        states.append((version, None if kind == "DELETED" else last))
    told = Told()
    taken = 0
    for index, (kind, item) in enumerate(history, start=1):
        told.gate.event(kind, item)
        if data.draw(st.booleans()):
            # A list that was read at some moment since the last one, and arrives now.
            taken = data.draw(st.integers(taken, index))
            at, state = states[taken]
            if state is not None:
                told.gate.put(state)
            told.gate.listed({A} if state is not None else set(), at)
    _, truth = states[-1]
    expected = {A: (truth["metadata"]["uid"], int(truth["metadata"]["resourceVersion"]))} if truth is not None else {}
    assert told.now == expected
