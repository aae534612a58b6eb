"""The life cycle: admission, drains, sleep and wake, versions. Pure; time is an argument."""

import itertools

import pytest

from corral_server.lifecycle import Lifecycle, Problem, Refusal, State, Wake

HOST = Wake(("host",), (1.0,), "host")


def loaded() -> Lifecycle:
    life = Lifecycle()
    life.downloading()
    life.downloaded({"bytes": 1, "path": "/m"}, 0.1)
    assert life.wake(HOST) is True
    life.loaded({"contextLength": 8}, {"total": 5}, {"load": 1.0})
    return life


def drain(
    life: Lifecycle, now: float = 10.0, *, if_idle: bool = True, since: float | None = None, ttl: float = 10.0, deadline: float | None = None
) -> bool:
    return life.drain(now, if_idle=if_idle, if_unused_since=since, ttl=ttl, deadline=deadline)


def test_it_starts_asleep_and_admits_only_when_loaded():
    life = Lifecycle()
    assert not life.admit(1.0)
    life.downloading()
    assert not life.admit(1.0)
    life.downloaded({"bytes": 1, "path": "/m"}, 0.1)
    assert life.state is State.SLEEPING
    assert not life.admit(1.0)
    life.wake(HOST)
    assert life.state is State.LOADING
    assert not life.admit(1.0)
    life.loaded({}, {}, {})
    assert life.admit(1.0)
    assert (life.in_flight, life.served, life.last_used) == (1, 1, 1.0)


def test_a_drain_if_idle_is_refused_with_a_request_in_flight_and_changes_nothing():
    life = loaded()
    life.admit(5.0)
    version = life.version
    assert not drain(life)
    assert (life.state, life.version) == (State.LOADED, version)
    life.release(6.0)
    assert drain(life)
    assert life.state is State.DRAINING
    assert not life.admit(11.0)


def test_a_drain_is_refused_when_something_used_the_model_since_the_plan():
    life = loaded()
    life.admit(5.0)
    life.release(6.0)
    assert not drain(life, since=6.0)
    assert drain(life, since=6.1)


def test_a_drain_without_if_idle_leaves_what_is_in_flight():
    life = loaded()
    life.admit(5.0)
    assert drain(life, if_idle=False)
    assert life.in_flight == 1
    assert isinstance(life.may_sleep(), Refusal)
    life.release(6.0)
    assert life.may_sleep() is None


def test_a_drain_ends_by_itself_after_its_ttl_and_renewal_prolongs_it():
    life = loaded()
    drain(life, 10.0, ttl=10.0)
    assert life.due(19.9).next_at == 20.0
    drain(life, 19.0, ttl=10.0)
    life.due(20.5)
    assert life.state is State.DRAINING
    life.due(29.0)
    assert life.state is State.LOADED
    assert life.admit(30.0)


def test_the_deadline_ends_streams_once_and_only_when_there_are_some():
    life = loaded()
    life.admit(5.0)
    drain(life, 10.0, if_idle=False, ttl=60.0, deadline=20.0)
    assert not life.due(19.0).end_streams
    assert life.due(20.0).end_streams
    assert not life.due(21.0).end_streams
    idle = loaded()
    drain(idle, 10.0, if_idle=False, ttl=60.0, deadline=20.0)
    assert not idle.due(20.0).end_streams


def test_sleep_needs_a_drain_and_is_a_no_op_when_asleep():
    life = loaded()
    refusal = life.may_sleep()
    assert isinstance(refusal, Refusal)
    assert refusal.code == "NotDrained"
    drain(life)
    assert life.may_sleep() is None
    life.sleep_started()
    life.asleep(7)
    assert (life.state, life.residue, life.wake_order) == (State.SLEEPING, 7, None)
    assert life.may_sleep() is None


def test_nothing_brings_back_an_engine_that_is_being_ended():
    life = loaded()
    drain(life)
    life.sleep_started()
    life.resume()
    assert life.state is State.DRAINING
    assert isinstance(life.wake(HOST), Refusal)
    drain(life, 11.0, ttl=0.1)
    life.due(100.0)
    assert life.state is State.DRAINING
    life.asleep(0)
    assert life.wake(HOST) is True


def test_waking_where_it_is_loaded_is_a_no_op_and_elsewhere_is_refused():
    life = loaded()
    assert life.wake(HOST) is False
    assert isinstance(life.wake(Wake(("GPU-1",), (1.0,), "gpu")), Refusal)
    drain(life)
    assert life.wake(HOST) is False
    assert life.state is State.LOADED


def test_waking_without_a_file_is_refused():
    life = Lifecycle()
    life.downloading()
    assert isinstance(life.wake(HOST), Refusal)
    life.download_failed(Problem("SourceNotFound", "no", retry=False, at=1.0))
    assert isinstance(life.wake(HOST), Refusal)


def test_a_failed_load_sleeps_with_its_error_until_the_next_success():
    life = loaded()
    drain(life)
    life.sleep_started()
    life.asleep(0)
    life.wake(HOST)
    life.load_failed(Problem("OutOfMemory", "big", retry=False, at=1.0), 3)
    assert (life.state, life.wake_order) == (State.SLEEPING, None)
    assert life.error is not None
    life.wake(HOST)
    life.loaded({}, {}, {})
    assert life.error is None


def test_an_older_epoch_is_refused_for_ever():
    life = Lifecycle()
    assert life.fence(3)
    assert life.fence(3)
    assert not life.fence(2)
    assert life.fence(4)
    assert not life.fence(3)


def test_the_version_grows_when_in_flight_leaves_or_reaches_zero_and_not_between():
    life = loaded()
    versions = [life.version]
    for step in (life.admit, life.admit, life.release, life.release):
        step(5.0)
        versions.append(life.version)
    assert [b - a for a, b in itertools.pairwise(versions)] == [1, 0, 0, 1]


def test_progress_makes_a_version_per_percent_only():
    life = Lifecycle()
    life.downloading()
    before = life.version
    for value in (0.001, 0.002, 0.0101, 0.0102, 0.02):
        life.progressed(value)
    assert life.version - before == 2


def test_a_stopping_server_admits_nobody():
    life = loaded()
    life.stop()
    assert not life.admit(1.0)
    assert not life.admitting


@pytest.mark.parametrize("state", [State.PENDING, State.DOWNLOADING, State.FAILED])
def test_draining_what_does_not_admit_anyway_is_fine(state: State):
    life = Lifecycle(state=state)
    assert drain(life)
    assert life.state is state
