"""Loads that do not end well: killed, or stuck."""

import os
import signal
from pathlib import Path

import pytest
from tests.server.harness import Server
from tests.support.models import gemma

pytestmark = pytest.mark.model


def first_child(server: Server) -> int:
    """The engine, caught right after its fork: it has most of a second of loading before it."""
    server.until("Sleeping")
    assert server.wake().status_code == 202
    while not (children := server.tree()["children"]):
        pass
    return min(children)


@pytest.mark.parametrize(
    ("number", "env", "reason"),
    [(signal.SIGKILL, {}, "EngineCrashed"), (signal.SIGSTOP, {"CORRAL_LOAD_TIMEOUT_SECONDS": "1"}, "LoadTimeout")],
)
def test_a_load_that_is_killed_or_stuck_goes_back_to_sleep_with_its_reason(number: signal.Signals, env: dict[str, str], reason: str, tmp_path: Path):
    with Server(gemma().as_uri(), tmp_path, env=env) as server:
        os.kill(first_child(server), number)
        status = server.status()
        while status["error"] is None:
            status = server.status(after=status["version"])
        assert (status["state"], status["error"]["reason"], status["error"]["retry"]) == ("Sleeping", reason, True)
        assert server.tree()["children"] == []
        if number is signal.SIGKILL:
            server.wake()
            assert server.until("Loaded")["error"] is None
