"""`corral explain` of a running `corral up`, word for word: for each thing that can be in a model's way, the arithmetic that a reader needs."""

import asyncio

from tests.local.herd import stream
from tests.support.explained import explained

CAPACITY, MARGIN = 400, 20


def lines(herd, name: str, *, capacity: int = CAPACITY) -> list[str]:
    need = herd.status(name)["memory"]["required"]
    assert need.endswith("Mi")
    size = float(need[:-2])
    figures = {"need": size, "room": capacity - MARGIN, "rest": capacity - MARGIN - size, "short": size - capacity + MARGIN}
    return explained(herd.corral("explain", name).stdout, figures)


def start(herd, **spec) -> None:
    herd.pool(f"{CAPACITY}Mi", memoryMargin=f"{MARGIN}Mi", fairness={"maxWait": "100s", "turn": "60s"}, hold={"timeout": "200s"})
    herd.model("a", "I am alpaca, and I go on.", loop=True, **spec)
    herd.model("b", "I am bison.")


async def test_fits_now_must_evict_and_waits_for_a_turn(herd):
    start(herd)
    herd.start()
    await herd.ready("a", "b")
    assert lines(herd, "a") == [
        "default/a is Idle",
        "  Loaded=False (Idle): At rest; a request wakes it.",
        "  a request would load it now: needs <need>; local has <room> free of 400Mi, margin taken off, 0 committed",
    ]
    async with herd.openai() as client:
        answer = stream(client, "a", max_tokens=60000)
        await anext(answer)
        await herd.until(lambda: "there: a (Loaded)" in herd.corral("explain", "b").stdout)
        assert lines(herd, "b") == [
            "default/b is Idle",
            "  Loaded=False (Idle): At rest; a request wakes it.",
            "  a request would have to make room: needs <need>",
            "    local has <rest> free of 400Mi, margin taken off, <need> committed; there: a (Loaded)",
        ]
        waiting = asyncio.create_task(herd.ask("b"))
        await herd.until(lambda: herd.waits("b") and herd.pods("b"), "b to wait")
        await herd.until(lambda: "  next: the turn of default/a ends" in herd.corral("explain", "b").stdout)
        told = lines(herd, "b")
        assert told[0] in ("default/b is WaitingForTurn", "default/b is WaitingForMemory")
        assert told[1].endswith(": needs <need> on one device; margin 20Mi per device.")
        assert told[2:] == [
            "local: 400Mi, free <rest>; not: a in flight (1).",
            "Next: the turn of default/a ends at <time>.",
            "  needs <need>:",
            "    local (host): 400Mi less 20Mi margin, free <rest>, needed <need>, could free 0",
            "      default/a stays: InFlight",
            "  next: the turn of default/a ends (<when>)",
        ]
        await answer.aclose()
        assert await waiting == "I am bison."


async def test_pinned_in_the_way(herd):
    start(herd, pinned=True)
    herd.start()
    await herd.until(lambda: herd.loaded() == {"a"})
    waiting = asyncio.create_task(herd.ask("b"))
    await herd.until(lambda: herd.waits("b"), "b to wait")
    assert lines(herd, "b") == [
        "default/b is WaitingForMemory",
        "  Loaded=False (WaitingForMemory): needs <need> on one device; margin 20Mi per device.",
        "local: 400Mi, free <rest>; not: a pinned.",
        "  needs <need>:",
        "    local (host): 400Mi less 20Mi margin, free <rest>, needed <need>, could free 0",
        "      default/a stays: Pinned",
    ]
    herd.remove("a")
    assert await waiting == "I am bison."


async def test_never_fits_and_only_the_margin_is_in_the_way(herd):
    """The second would fit, were it not for the margin: what is missing is told apart from what is kept free."""
    for capacity, name, text in ((150, "a", "I am alpaca."), (245, "b", "I am bison.")):
        herd.pool(f"{capacity}Mi", memoryMargin=f"{MARGIN}Mi")
        herd.model(name, text)
        if herd.process is None:
            herd.start()
        await herd.until(lambda name=name: herd.condition(name, "Stalled").get("status") == "True", f"{name} to be Stalled")
        await herd.until(lambda name=name, capacity=capacity: f"{capacity}Mi" in herd.condition(name, "Stalled")["message"])
        message = (
            f"needs <need>; the largest device of pool default is local with {capacity}Mi, of which 20Mi stay free as margin: <short> too little."
        )
        assert lines(herd, name, capacity=capacity) == [
            f"default/{name} is DoesNotFit",
            f"  Stalled=True (DoesNotFit): {message}",
            f"  Loaded=False (DoesNotFit): {message}",
            f"  Ready=False (DoesNotFit): {message}",
            "  needs <need>:",
            f"    local (host): {capacity}Mi less 20Mi margin, free <room>, needed <need>, could free 0",
        ]
