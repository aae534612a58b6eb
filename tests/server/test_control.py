"""The control port and the door of the inference port, on a real server with a small model."""

import hashlib
import http.client
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.server.harness import Server
from tests.server.web_source import Site, serving
from tests.support.gguf_files import sentence_model

pytestmark = pytest.mark.model

CHAT = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that talks until it is stopped, slowly enough to be caught at it."""
    return sentence_model("The quick brown alpaca jumps over the lazy llama", size=60_000_000, layers=4, context=4096, loop=True)


@pytest.fixture(scope="module")
def talker(endless: Path, tmp_path_factory: pytest.TempPathFactory):
    with Server(endless.as_uri(), tmp_path_factory.mktemp("talker")) as server:
        yield server


@pytest.fixture
def loaded(talker: Server) -> Server:
    """The talker, loaded and admitting, whatever the test before left."""
    talker.until("Sleeping", "Loaded", "Draining")
    talker.control.post("/control/resume")
    if talker.status()["state"] == "Sleeping":
        talker.load()
    return talker


def stream(server: Server, **more: object):
    return server.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True, **more})


def wait_idle(server: Server) -> dict:
    status = server.status()
    while status["inFlight"]:
        status = server.status(after=status["version"])
    return status


def test_it_starts_asleep_with_its_file_and_little_memory(talker: Server):
    status = talker.until("Sleeping")
    assert not status["admitting"]
    assert status["file"]["bytes"] > 60_000_000
    assert 0 < status["memory"]["residue"] < 110 << 20
    refused = talker.http.post("/v1/chat/completions", json=CHAT)
    assert (refused.status_code, refused.headers["x-corral-draining"], refused.headers["retry-after"]) == (503, "true", "1")
    assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
    assert talker.http.get("/v1/models").json()["data"][0]["id"] == "models/tested"
    assert talker.control.get("/readyz", headers={"authorization": ""}).status_code == 200
    assert talker.http.get("/healthz", headers={"authorization": ""}).status_code == 200


def test_a_life(loaded: Server):
    status = loaded.status()
    assert status["state"] == "Loaded"
    assert status["devices"] == ["host"]
    assert status["model"]["architecture"] == "llama"
    assert status["load"]["total"] > 0
    assert loaded.wake().status_code == 200
    assert loaded.wake(devices=["other"]).status_code == 409
    assert loaded.sleep().status_code == 409
    engine = loaded.engine_pid()
    assert loaded.drain(ifIdle=True, ttl="20s").json() == {"inFlight": 0}
    assert loaded.status()["state"] == "Draining"
    assert loaded.http.post("/v1/chat/completions", json=CHAT).status_code == 503
    asleep = loaded.sleep()
    assert asleep.status_code == 200
    assert not Path(f"/proc/{engine}").exists()
    assert asleep.json()["memory"]["residue"] < 110 << 20
    assert loaded.sleep().status_code == 200
    before = status["loads"]
    assert loaded.load()["loads"] == before + 1


def test_a_drain_gives_way_to_what_is_in_flight_and_to_recent_use(loaded: Server):
    with stream(loaded, max_tokens=400) as answer:
        blocks = answer.iter_bytes()
        next(blocks)
        status = loaded.status()
        assert status["inFlight"] == 1
        refused = loaded.drain(ifIdle=True)
        assert refused.status_code == 409
        assert refused.json()["inFlight"] == 1
        assert loaded.drain(ifIdle=False, ttl="30s").json() == {"inFlight": 1}
        assert loaded.sleep().status_code == 409
        assert loaded.http.post("/v1/chat/completions", json=CHAT).status_code == 503
        rest = b"".join(blocks)
    assert rest.endswith(b"data: [DONE]\n\n")
    used = wait_idle(loaded)["lastUsed"]
    loaded.control.post("/control/resume")
    refused = loaded.drain(ifIdle=True, ifUnusedSince=used)
    assert (refused.status_code, refused.json()["lastUsed"]) == (409, used)
    later = (datetime.fromisoformat(used) + timedelta(seconds=1)).isoformat()
    assert loaded.drain(ifIdle=True, ifUnusedSince=later).status_code == 200


def test_a_forgotten_drain_admits_again(loaded: Server):
    loaded.drain(ttl="300ms")
    status = loaded.status()
    while status["state"] != "Loaded":
        status = loaded.status(after=status["version"])
    assert status["admitting"]


def test_the_end_of_a_turn_ends_streams_with_an_event(loaded: Server):
    with stream(loaded, max_tokens=3000) as answer:
        blocks = answer.iter_bytes()
        first = next(blocks)
        deadline = datetime.now(UTC) + timedelta(milliseconds=300)
        assert loaded.drain(ttl="30s", deadline=deadline.isoformat()).status_code == 200
        rest = first + b"".join(blocks)
    assert b'"code":"turn_ended"' in rest.split(b"\n\n")[-2]
    assert b"[DONE]" not in rest
    wait_idle(loaded)
    assert loaded.sleep().status_code == 200


def test_a_client_that_leaves_frees_its_slot(loaded: Server):
    with stream(loaded, max_tokens=3000) as answer:
        next(answer.iter_bytes())
    assert wait_idle(loaded)["queued"] == 0
    with pytest.raises(Exception, match="timed out"):
        loaded.http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 3000}, timeout=0.5)
    wait_idle(loaded)
    # The engine is idle again: the next answer's first token does not wait for the others' thousands.
    assert loaded.http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 2}).status_code == 200


def test_the_queue_is_bounded(loaded: Server):
    results: list[int] = []

    def ask() -> None:
        results.append(loaded.http.post("/v1/completions", json={"prompt": "x", "n": 60, "max_tokens": 40}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) == {200, 429}
    wait_idle(loaded)


def test_long_polls_wake_on_change_and_wait_otherwise(loaded: Server):
    version = loaded.status()["version"]
    begin = time.monotonic()
    assert loaded.status(after=version, wait="300ms")["version"] == version
    assert time.monotonic() - begin >= 0.3
    answers: list[dict] = []
    poll = threading.Thread(target=lambda: answers.append(loaded.status(after=version, wait="30s")))
    poll.start()
    loaded.drain(ttl="30s")
    poll.join(10)
    assert answers[0]["state"] == "Draining"
    assert answers[0]["version"] > version


def test_tokens_are_asked_for_on_both_ports(loaded: Server):
    for header in ({"authorization": ""}, {"authorization": "Bearer nonsense"}, loaded.bearer("infer", audience="other")):
        for client, method, path in (
            (loaded.control, "GET", "/control/status"),
            (loaded.http, "POST", "/v1/chat/completions"),
            (loaded.http, "GET", "/v1/models"),
        ):
            answer = client.request(method, path, headers=header)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_token")
    assert loaded.control.get("/control/status", headers=loaded.bearer("infer")).status_code == 200
    assert loaded.control.post("/control/drain", headers=loaded.bearer("infer")).status_code == 401
    assert loaded.http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}, headers=loaded.bearer("control")).status_code == 200


def test_bad_control_calls_say_what_is_wrong(loaded: Server):
    for path, body, says in (
        ("drain", {"ttl": "soon"}, "ttl"),
        ("drain", {"ifUnusedSince": "yesterday"}, "ifUnusedSince"),
        ("wake", {"deviceKind": "tpu"}, "deviceKind"),
        ("wake", {"devices": "GPU-1"}, "devices"),
    ):
        answer = loaded.control.post(f"/control/{path}", json=body)
        assert answer.status_code == 400
        assert says in answer.json()["error"]["message"]
    assert loaded.control.post("/control/drain", content=b"[").status_code == 400
    assert loaded.status()["admitting"]


def test_a_large_body_is_not_read_when_nobody_is_admitted(loaded: Server):
    loaded.drain(ttl="30s")
    address = urlsplit(loaded.inference_url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    for name, value in {**loaded.bearer("infer"), "content-type": "application/json", "content-length": str(50 << 20)}.items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(b"{" + b" " * 1000)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["x-corral-draining"], answer.headers["connection"]) == (503, "true", "close")
    answer.read()
    connection.close()


def test_an_older_epoch_changes_nothing(tmp_path: Path):
    with Server(sentence_model().as_uri(), tmp_path) as server:
        server.until("Sleeping")
        assert server.control.post("/control/resume", headers=server.bearer("control", epoch=5)).status_code == 200
        stale = server.control.post("/control/wake", json={"devices": ["host"]}, headers=server.bearer("control", epoch=4))
        assert stale.status_code == 409
        assert stale.json()["error"]["code"] == "StaleEpoch"
        assert stale.json()["error"]["epoch"] == 5
        assert server.status()["state"] == "Sleeping"
        assert server.control.get("/control/status", headers=server.bearer("control", epoch=1)).status_code == 200


@pytest.mark.parametrize(
    ("path", "sha256", "reason", "retry"),
    [("/none.gguf", "", "SourceNotFound", False), ("/page.gguf", "", "NotAGGUF", False), ("/m.gguf", "0" * 64, "ChecksumMismatch", False)],
)
def test_a_bad_source_ends_failed_with_its_reason(path: str, sha256: str, reason: str, retry: bool, tmp_path: Path):
    with (
        serving(Site({"/m.gguf": sentence_model().read_bytes(), "/page.gguf": b"<html>" * 50})) as site,
        Server(f"{site.url}{path}", tmp_path, sha256=sha256) as server,
    ):
        status = server.until("Failed")
        assert (status["error"]["reason"], status["error"]["retry"]) == (reason, retry)
        assert site.url in status["error"]["message"]
        assert server.control.get("/readyz").status_code == 503
        assert server.wake().status_code == 409


def test_a_download_that_may_heal_is_tried_again_by_itself(tmp_path: Path):
    data = sentence_model().read_bytes()
    with (
        serving(Site({"/m.gguf": data}, status={"/m.gguf": 503})) as site,
        Server(f"{site.url}/m.gguf", tmp_path, sha256=hashlib.sha256(data).hexdigest()) as server,
    ):
        assert server.until("Failed")["error"]["reason"] == "SourceUnreachable"
        site.status.clear()
        status = server.until("Sleeping")
        assert status["error"] is None
        assert status["progress"] == 1.0


def test_a_file_that_llama_cpp_refuses_goes_back_to_sleep_with_the_reason(tmp_path: Path):
    damaged = tmp_path / "damaged.gguf"
    data = bytearray(sentence_model().read_bytes())
    at = data.find(b"llama", data.find(b"general.architecture"))
    data[at : at + 5] = b"zebra"
    damaged.write_bytes(data)
    with Server(damaged.as_uri(), tmp_path / "run") as server:
        server.until("Sleeping")
        server.wake()
        status = server.status()
        while status["error"] is None:
            status = server.status(after=status["version"])
        assert (status["state"], status["error"]["reason"]) == ("Sleeping", "UnsupportedModel")
        assert "zebra" in status["error"]["message"]
