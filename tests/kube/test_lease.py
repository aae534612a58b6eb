"""Leadership: takeover, renewal, expiry by local clocks, and a process that was stopped for too long."""

from __future__ import annotations

import copy
import json

import pytest
from tests.kube.world import HandClock

from corral.kube.client import AlreadyExists
from corral.kube.epochs import highest_epoch
from corral.kube.lease import Elector, LeaseTimes, first_epoch
from corral.kube.ports import COMMIT, Conflict, Gone, Unavailable

PATH = "/apis/coordination.k8s.io/v1/namespaces/corral/leases/op"


class StoredLease:
    """One object with the API server's optimistic concurrency."""

    def __init__(self) -> None:
        self.obj = None
        self.version = 0
        self.down = False
        self.writes = 0

    def _check(self) -> None:
        if self.down:
            raise Unavailable("down")

    async def get(self, path):
        assert path == PATH
        self._check()
        if self.obj is None:
            raise Gone(path)
        return copy.deepcopy(self.obj)

    async def create(self, _path, body):
        self._check()
        if self.obj is not None:
            raise AlreadyExists("there")
        return self._store(body)

    async def replace(self, path, body):
        assert path == PATH
        self._check()
        if self.obj is None:
            raise Gone(path)
        if body["metadata"].get("resourceVersion") != self.obj["metadata"]["resourceVersion"]:
            raise Conflict("changed")
        return self._store(body)

    def _store(self, body):
        self.version += 1
        self.writes += 1
        self.obj = copy.deepcopy(body)
        self.obj["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.obj)


class Scene:
    def __init__(self) -> None:
        self.lease = StoredLease()
        self.clock = HandClock()

    def elector(self, identity: str, *, script=(), highest=None) -> Elector:
        """`script`: what happens during each sleep of `hold`, after `retry` seconds have passed; the last one must end the term."""
        steps = list(script)

        async def sleep(seconds: float) -> None:
            self.clock.pass_by(seconds)
            if steps:
                steps.pop(0)()

        return Elector(self.lease, "corral", "op", identity, times=LeaseTimes(), clock=self.clock, sleep=sleep, highest=highest)


@pytest.fixture
def scene():
    return Scene()


async def test_the_first_leader_starts_above_any_epoch_of_a_deleted_lease(scene):
    first = scene.elector("a")
    assert not first.may_write()
    assert await first.acquire() == first_epoch(scene.clock.wall)
    assert first.may_write()
    scene.clock.pass_by(3600)
    scene.lease.obj = None
    assert await scene.elector("b").acquire() > first.epoch


async def test_a_standby_waits_for_the_expiry_by_its_own_clock(scene):
    leader, standby = scene.elector("a"), scene.elector("b")
    await leader.acquire()
    # The wall clock of the leader says nothing: what counts is when the standby saw the last change.
    scene.lease.obj["spec"]["renewTime"] = "2001-01-01T00:00:00.000000Z"
    assert not await standby.try_acquire()
    scene.clock.pass_by(14.9)
    assert not await standby.try_acquire()
    scene.clock.pass_by(0.1)
    assert await standby.try_acquire()
    assert standby.epoch == leader.epoch + 1
    assert not leader.leads


async def test_a_renewal_keeps_the_standby_away(scene):
    leader, standby = scene.elector("a"), scene.elector("b")
    await leader.acquire()
    for _ in range(5):
        assert not await standby.try_acquire()
        scene.clock.pass_by(10)
        scene.lease.obj["spec"]["renewTime"] += "+"


async def test_no_write_begins_that_could_end_after_the_expiry(scene):
    leader = scene.elector("a")
    await leader.acquire()
    scene.clock.pass_by(9.4)
    assert leader.may_write()
    scene.clock.pass_by(0.2)
    assert not leader.may_write()
    assert leader.leads
    scene.clock.pass_by(6)
    assert not leader.leads


async def test_a_renewal_extends_the_term_from_before_it_was_sent(scene):
    seen = []
    leader = scene.elector("a", script=[lambda: None, lambda: seen.append(leader.may_write()), lambda: scene.clock.pass_by(20)])
    epoch = await leader.acquire()
    await leader.hold()
    assert seen == [True]
    assert (leader.epoch, leader.leads) == (epoch, False)
    assert scene.lease.writes == 3  # taken, renewed twice, and nothing after the long pause


async def test_a_process_that_was_stopped_past_the_expiry_never_writes_again(scene):
    leader = scene.elector("a", script=[lambda: scene.clock.pass_by(60)])
    await leader.acquire()
    before = scene.lease.writes
    await leader.hold()  # nobody took the lease meanwhile; still it is not renewed
    assert scene.lease.writes == before
    assert not leader.may_write()


@pytest.mark.parametrize("clock", ["mono", "wall"])
async def test_either_clock_ends_the_term(scene, clock):
    leader = scene.elector("a")
    await leader.acquire()
    setattr(scene.clock, clock, getattr(scene.clock, clock) + 15)
    assert not leader.may_write()
    setattr(scene.clock, clock, getattr(scene.clock, clock) - 15)
    assert not leader.may_write(), "once late, always lost"


async def test_a_wall_clock_that_is_set_back_does_not_extend_the_term(scene):
    leader = scene.elector("a")
    await leader.acquire()
    scene.clock.wall -= 3600
    scene.clock.mono += 15
    assert not leader.leads


async def test_another_holder_ends_the_term(scene):
    def taken():
        scene.lease.obj["spec"] |= {"holderIdentity": "b", "leaseTransitions": 1 + scene.lease.obj["spec"]["leaseTransitions"]}
        scene.lease.obj["metadata"]["resourceVersion"] = "other"

    leader = scene.elector("a", script=[taken])
    await leader.acquire()
    await leader.hold()
    assert not leader.may_write()
    assert scene.lease.obj["spec"]["holderIdentity"] == "b"


async def test_a_strangers_label_is_borne(scene):
    def labelled():
        scene.lease.obj["metadata"] |= {"labels": {"x": "y"}, "resourceVersion": "other"}

    leader = scene.elector("a", script=[labelled, lambda: None, lambda: scene.clock.pass_by(60)])
    await leader.acquire()
    await leader.hold()
    assert scene.lease.obj["metadata"]["labels"] == {"x": "y"}
    assert scene.lease.writes == 2


async def test_an_api_that_is_down_ends_the_term_in_time(scene):
    def down():
        scene.lease.down = True

    leader = scene.elector("a", script=[down])
    await leader.acquire()
    await leader.hold()
    assert not leader.leads


async def test_a_deleted_lease_ends_the_term(scene):
    def deleted():
        scene.lease.obj = None

    leader = scene.elector("a", script=[deleted])
    await leader.acquire()
    await leader.hold()
    assert not leader.may_write()


async def test_a_release_lets_the_next_one_in_at_once_with_a_higher_epoch(scene):
    leader, standby = scene.elector("a"), scene.elector("b")
    await leader.acquire()
    assert not await standby.try_acquire()
    await leader.release()
    assert not leader.may_write()
    assert await standby.try_acquire()
    assert standby.epoch == leader.epoch + 1


async def test_the_same_process_anew_is_a_new_leader(scene):
    await scene.elector("a-1").acquire()
    again = scene.elector("a-2")
    assert not await again.try_acquire()
    scene.clock.pass_by(15)
    assert await again.try_acquire()
    assert again.epoch == first_epoch(scene.clock.wall - 15) + 1


async def test_of_two_that_take_it_at_once_one_leads(scene):
    one, two = scene.elector("a"), scene.elector("b")
    stale = await one.acquire()
    scene.clock.pass_by(15)
    three = scene.elector("c")
    assert not await two.try_acquire()
    assert not await three.try_acquire()
    scene.clock.pass_by(15)
    lease = await scene.lease.get(PATH)
    assert await two._take((scene.clock.mono, scene.clock.wall), lease)
    assert not await three._take((scene.clock.mono, scene.clock.wall), lease)
    assert (two.epoch, three.leads) == (stale + 1, False)


class Pods:
    """Server pods with commitments, listed two at a time."""

    def __init__(self, *commitments) -> None:
        self.items = [{"metadata": {"annotations": {COMMIT: text} if text else {}}} for text in commitments]
        self.down = False

    async def list(self, path, params):
        if self.down:
            raise Unavailable("down")
        assert path == "/api/v1/pods"
        assert "managed-by=corral" in params["labelSelector"]
        start = int(params.get("continue", "0"))
        more = {"continue": str(start + 2)} if start + 2 < len(self.items) else {}
        return {"items": self.items[start : start + 2], "metadata": more}


@pytest.mark.parametrize("lease", ["gone", "restored from long ago"])
async def test_no_term_starts_at_or_below_what_commitments_carry(scene, lease):
    """A Lease that was made anew while the clock is behind, or came back from a backup."""
    if lease != "gone":
        await scene.elector("old").acquire()
        scene.lease.obj["spec"] |= {"leaseTransitions": 3, "holderIdentity": ""}
    far = first_epoch(scene.clock.wall) + 500_000
    pods = Pods('{"epoch": 4, "devices": {}}', "{broken", None, json.dumps({"epoch": far, "devices": {"host": 1}}), '{"epoch": "7"}')
    leader = scene.elector("a", highest=lambda: highest_epoch(pods))
    assert await leader.acquire() == far + 1
    assert scene.lease.obj["spec"]["leaseTransitions"] == far + 1


async def test_no_term_starts_while_commitments_cannot_be_read(scene):
    pods = Pods(None)
    pods.down = True
    leader = scene.elector("a", highest=lambda: highest_epoch(pods))
    assert not await leader.try_acquire()
    assert scene.lease.obj is None
    pods.down = False
    assert await leader.try_acquire()


async def test_a_holder_that_is_outdone_goes_above_with_its_next_renewal(scene):
    """A supervisor heard an epoch that no commitment carries any more: without this it would refuse for good."""
    seen = []
    leader = scene.elector("a", script=[lambda: None, lambda: seen.append(leader.epoch), lambda: scene.clock.pass_by(20)])
    first = await leader.acquire()
    leader.outdone(first + 40)
    assert leader.epoch == first, "not before the Lease says so"
    await leader.hold()
    assert seen == [first + 41]
    assert scene.lease.obj["spec"]["leaseTransitions"] == first + 41


async def test_one_that_was_outdone_by_another_holder_is_no_leader(scene):
    def deposed() -> None:
        scene.lease.obj["spec"] |= {"holderIdentity": "b", "leaseTransitions": leader.epoch + 1}
        scene.lease.obj["metadata"]["resourceVersion"] = "99"

    leader = scene.elector("a", script=[deposed])
    leader.outdone(await leader.acquire() + 1)
    await leader.hold()
    assert not leader.may_write()
    assert scene.lease.obj["spec"]["holderIdentity"] == "b"
