"""One explanation, everywhere: the condition, the event, `corral explain` and the error that a client reads say the same, with the arithmetic."""

import json
import re
import time

import pytest
from tests.support.fake_world import MI

from corral import show
from corral.domain import reasons
from corral.gateway import refusals
from corral.gateway.errors import error_body
from corral.gateway.routes import Shape
from corral.views import model_view

LONG = {"fairness": {"maxWait": "100s", "turn": "50s"}, "hold": {"timeout": "1000s"}, "eviction": {"minResidency": "0s"}}


def timeless(text: str) -> str:
    """Times as they cannot be known beforehand."""
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \(in \d+ s\)", "<when>", text)
    return re.sub(r"\d\d:\d\d:\d\dZ", "<time>", text)


def explained(world, key: str) -> list[str]:
    """What `corral explain` prints of where it is, without memory, replicas and load times."""
    lines = show.explanation(world.models[key], time.time(), list(world.pools.values()), list(world.models.values()))
    text = "\n".join(line for line in lines if not re.match(r"  (memory:|replica |its last load|evictions:)", line))
    return timeless(re.sub(r", \d+s ago", "", text)).splitlines()


def answered(world, key: str) -> dict:
    """The body of the error that a client gets when its wait is over, or at once."""
    view = model_view(world.models[key], world.pools["default"])
    return json.loads(error_body(Shape.OPENAI, refusals.blocked(view) or refusals.timed_out(view, 12.0)))["error"]


def events(world, key: str) -> list[tuple[str, str]]:
    return [(reason, timeless(message)) for name, reason, message in world.events if f"m/{name}" == key]


async def waits(world, key: str, text: str) -> str:
    """Until its condition says so; the message."""
    await world.until(lambda: text in world.condition(key, "Loaded").get("message", ""))
    assert world.condition(key, "Loaded")["message"] == world.status(key)["explanation"]["message"]
    assert world.condition(key, "Loaded")["reason"] == world.status(key)["explanation"]["reason"]
    assert world.condition(key, "Ready")["status"] == "True", "waiting is no failure"
    return timeless(world.condition(key, "Loaded")["message"])


async def listed(world, committed: str) -> None:
    await world.until(lambda: (world.pools["default"].get("status") or {}).get("committed") == committed)


async def test_fits_now(world, lead):
    world.node("n1", 400 * MI, margin=20 * MI)
    a = world.model("a", 100 * MI)
    lead()
    await world.until(lambda: world.condition(a, "Ready").get("status") == "True")
    await listed(world, "0")
    assert explained(world, a) == [
        "m/a is Idle",
        "  Loaded=False (Idle): At rest; a request wakes it.",
        "  a request would load it now: needs 100Mi; n1 has 380Mi free of 400Mi, margin taken off, 0 committed",
    ]


async def test_must_evict(world, lead):
    world.node("n1", 150 * MI, margin=20 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    lead()
    await world.answered(a)
    await listed(world, "100Mi")
    await world.until(lambda: world.status(a).get("placements", [{}])[0].get("state") == "Loaded")
    assert explained(world, b) == [
        "m/b is Idle",
        "  Loaded=False (Idle): At rest; a request wakes it.",
        "  a request would have to make room: needs 100Mi",
        "    n1 has 30Mi free of 150Mi, margin taken off, 100Mi committed; there: a (Loaded)",
    ]
    await world.answered(b)
    await world.until(lambda: any(reason == reasons.EVICTED for reason, _ in events(world, a)))
    assert (reasons.EVICTED, "m/a makes room for m/b, which needs 100Mi on n1: unused since <time>.") in events(world, a)


async def test_waits_for_a_turn(world, lead):
    world.pool(**LONG)
    world.node("n1", 150 * MI, margin=20 * MI)
    a, b = world.model("a", 100 * MI), world.model("b", 100 * MI)
    lead()
    await world.answered(a)
    pod = world.hold(a)
    waiter = world.ask(b)
    message = await waits(world, b, "n1: 150Mi, free 30Mi; not: a in flight (1).")
    assert message == (
        "needs 100Mi on one device; margin 20Mi per device.\nn1: 150Mi, free 30Mi; not: a in flight (1).\nNext: the turn of m/a ends at <time>."
    )
    reason = world.condition(b, "Loaded")["reason"]
    assert reason in (reasons.WAITING_FOR_MEMORY, reasons.WAITING_FOR_TURN)
    lines = explained(world, b)
    assert lines[0] == f"m/b is {reason}"
    assert lines[4:] == [
        "  needs 100Mi:",
        "    n1 (host): 150Mi less 20Mi margin, free 30Mi, needed 100Mi, could free 0",
        "      m/a stays: InFlight",
        "  next: the turn of m/a ends (<when>)",
    ]
    body = answered(world, b)
    assert body["code"] == "hold_timeout"
    assert timeless(body["message"]) == f"m/b did not become resident within 12s; it is {reason}: {message}"
    told = [text for why, text in events(world, b) if why in (reasons.WAITING_FOR_MEMORY, reasons.WAITING_FOR_TURN)]
    assert told
    assert all("needs 100Mi on one device; margin 20Mi per device." in text for text in told)
    world.end(pod)
    await world.until(waiter.done.is_set)


async def test_never_fits(world, lead):
    world.node("n1", 150 * MI, margin=20 * MI)
    a = world.model("a", 140 * MI)
    lead()
    await world.until(lambda: world.condition(a, "Stalled").get("status") == "True")
    message = "needs 140Mi; the largest device of pool default is n1 with 150Mi, of which 20Mi stay free as margin: 10Mi too little."
    for kind in ("Stalled", "Ready", "Loaded"):
        assert (world.condition(a, kind)["reason"], world.condition(a, kind)["message"]) == (reasons.DOES_NOT_FIT, message)
    assert world.status(a)["explanation"]["message"] == message
    await world.until(lambda: (reasons.DOES_NOT_FIT, message) in events(world, a))
    body = answered(world, a)
    assert (body["code"], body["message"]) == ("does_not_fit", f"m/a cannot be placed: {message}")
    assert explained(world, a) == [
        "m/a is DoesNotFit",
        f"  Stalled=True (DoesNotFit): {message}",
        f"  Loaded=False (DoesNotFit): {message}",
        f"  Ready=False (DoesNotFit): {message}",
        "  needs 140Mi:",
        "    n1 (host): 150Mi less 20Mi margin, free 130Mi, needed 140Mi, could free 0",
    ]


@pytest.mark.parametrize(
    ("capacity", "margin", "pinned", "wanted", "line"),
    [
        (250, 20, 100, 150, "n1: 250Mi, free 130Mi; not: a pinned."),
        (205, 30, 80, 100, "n1: 205Mi, free 95Mi; not: a pinned."),
    ],
    ids=["pinned in the way", "margin in the way"],
)
async def test_in_the_way(world, lead, capacity, margin, pinned, wanted, line):
    """In the second case the bytes would be there, were it not for the margin: free and margin are told apart."""
    world.node("n1", capacity * MI, margin=margin * MI)
    a, b = world.model("a", pinned * MI, pinned=True), world.model("b", wanted * MI)
    lead()
    await world.until(lambda: world.condition(a, "Loaded").get("status") == "True")
    world.ask(b)
    message = await waits(world, b, line)
    assert message == f"needs {wanted}Mi on one device; margin {margin}Mi per device.\n{line}"
    free = capacity - margin - pinned
    assert explained(world, b)[3:] == [
        f"  needs {wanted}Mi:",
        f"    n1 (host): {capacity}Mi less {margin}Mi margin, free {free}Mi, needed {wanted}Mi, could free 0",
        "      m/a stays: Pinned",
    ]
    assert timeless(answered(world, b)["message"]).endswith(message)
    assert world.loaded() == {a}
