"""Reports, summed and judged by our own clock."""

from corral.api import GatewayReport
from corral.control.demand import DemandBook
from corral.domain.model import Demand

NOW = 1_800_000_000.0


def report(sequence: int, *models: dict, gateway: str = "gw-1", uid: str = "u1") -> GatewayReport:
    return GatewayReport.parse(
        {"metadata": {"namespace": "corral", "name": gateway, "uid": uid}, "spec": {"sequence": sequence, "models": list(models)}}
    )


def book(*reports: GatewayReport, at: float = NOW) -> DemandBook:
    found = DemandBook(15.0)
    for it in reports:
        found.put(it, at)
    return found


def test_gateways_are_summed_and_the_oldest_waiter_counts():
    found = book(
        report(1, {"name": "m/a", "waiting": 2, "oldestWaitSeconds": 3, "inFlight": 1}),
        report(1, {"name": "m/a", "waiting": 1, "oldestWaitSeconds": 9, "lastUsed": "2026-01-01T00:00:00Z"}, gateway="gw-2"),
    )
    demand = found.demand("m/a", None)
    assert (demand.waiting, demand.oldest, demand.in_flight) == (3, NOW - 9, 1)
    assert demand.last_used == 1_767_225_600.0


def test_a_smaller_sequence_is_stale_unless_the_gateway_is_another():
    found = book(report(5, {"name": "m/a", "waiting": 2}))
    assert found.put(report(4, {"name": "m/a", "waiting": 9}), NOW) == set()
    assert found.demand("m/a", None).waiting == 2
    assert found.put(report(1, {"name": "m/a", "waiting": 1}, uid="u2"), NOW) == {"m/a"}
    assert found.demand("m/a", None).waiting == 1


def test_a_model_that_is_left_out_waits_no_more():
    found = book(report(1, {"name": "m/a", "waiting": 2}, {"name": "m/b", "waiting": 1}))
    assert found.put(report(2, {"name": "m/b", "waiting": 1}), NOW) == {"m/a", "m/b"}
    assert found.demand("m/a", None) == Demand()


def test_what_is_not_renewed_counts_no_waiting():
    found = book(report(1, {"name": "m/a", "waiting": 2}))
    assert found.next_expiry() == NOW + 15
    assert found.expire(NOW + 14.9) == set()
    assert found.expire(NOW + 15) == {"m/a"}
    assert found.demand("m/a", None).waiting == 0
    assert found.next_expiry() is None
    found.put(report(2, {"name": "m/a", "waiting": 2}), NOW + 20)
    assert found.demand("m/a", None).waiting == 2


def test_a_report_at_rest_needs_no_renewal():
    found = book(report(1, {"name": "m/a", "lastUsed": "2026-01-01T00:00:00Z"}))
    assert found.next_expiry() is None


def test_the_same_waiter_keeps_its_arrival_although_seconds_are_whole():
    found = book(report(1, {"name": "m/a", "waiting": 1, "oldestWaitSeconds": 0}))
    found.put(report(2, {"name": "m/a", "waiting": 1, "oldestWaitSeconds": 5}), NOW + 5.9)
    assert found.demand("m/a", None).oldest == NOW
    found.put(report(3, {"name": "m/a", "waiting": 1, "oldestWaitSeconds": 2}), NOW + 10.9)
    assert found.demand("m/a", None).oldest == NOW + 8.9, "the first one left; this is another"


def test_a_wish_counts_until_it_was_taken_note_of():
    found = book(report(1, {"name": "m/a", "wish": {"action": "Load", "id": 7}}))
    assert (found.demand("m/a", None).wish, found.demand("m/a", None).wish_id) == ("Load", "corral/gw-1#7")
    assert found.demand("m/a", (6, "Load", "gw-1")).wish == "Load"
    assert found.demand("m/a", (7, "Load", "gw-1")).wish == ""


def test_a_gateway_that_is_gone_counts_nothing():
    found = book(report(1, {"name": "m/a", "waiting": 2}))
    assert found.remove("corral/gw-1") == {"m/a"}
    assert found.demand("m/a", None) == Demand()


def test_the_place_of_clients_that_come_back_is_kept_until_the_time_is_over():
    found = book(report(1, {"name": "m/a", "waiting": 0, "returningSeconds": 20}))
    assert found.demand("m/a", None).returning_until == NOW + 20
    assert found.next_expiry() == NOW + 20
    assert found.put(report(2), NOW + 1) == {"m/a"}, "it is said once; a report without it takes nothing back"
    assert found.demand("m/a", None).returning_until == NOW + 20
    assert found.remove("corral/gw-1") == set()
    assert found.demand("m/a", None).returning_until == NOW + 20, "nor does the end of the gateway"
    assert found.expire(NOW + 19.9) == set()
    assert found.expire(NOW + 20) == {"m/a"}
    assert found.demand("m/a", None) == Demand()
    assert found.next_expiry() is None


def test_whole_seconds_of_one_promise_do_not_move_it_and_the_longest_counts():
    found = book(report(1, {"name": "m/a", "returningSeconds": 20}))
    found.put(report(2, {"name": "m/a", "returningSeconds": 17}), NOW + 3.4)
    assert found.demand("m/a", None).returning_until == NOW + 20
    found.put(report(1, {"name": "m/a", "returningSeconds": 5}, gateway="gw-2"), NOW + 4)
    assert found.demand("m/a", None).returning_until == NOW + 20
    found.put(report(2, {"name": "m/a", "returningSeconds": 20}, gateway="gw-2"), NOW + 6)
    assert found.demand("m/a", None).returning_until == NOW + 26
