"""llama.cpp's router API, and the metrics."""

import asyncio
import json
import re
from pathlib import Path

from tests.gateway.conftest import model
from tests.gateway.peers import Pod, RawClient

from corral.gateway.keys import MemoryKeys, new_key, parse_key
from corral.gateway.metrics import Metrics


async def get(stand, path):
    async with stand.client.get(stand.url + path) as response:
        return response.status, await response.json()


async def post(stand, path, body):
    async with stand.client.post(stand.url + path, json=body) as response:
        return response.status, await response.json()


async def test_models_in_every_state(stand):
    async with Pod() as pod:
        stand.directory.put_model(model(served_names=("models/small", "small", "tiny")))
        stand.directory.put_replica(pod.view())
        stand.directory.put_model(model("asleep", state="Loaded"))
        stand.directory.put_model(model("asleep"))
        stand.directory.put_model(model("evicted", state="Loaded"))
        stand.directory.put_model(model("evicted", state="Loaded", evictions=1))  # the count may come before the state
        stand.directory.put_model(model("evicted", evictions=1))
        stand.directory.put_model(model("fetched"))
        stand.directory.put_model(model("idle", state="Idle"))
        stand.directory.put_model(model("loading", state="Loading"))
        stand.directory.put_model(model("fetching", state="Downloading"))
        stand.directory.put_model(model("huge", state="Idle", ready=False, stalled=True, stalled_reason="DoesNotFit"))
        status, listed = await get(stand, "/models")
    assert status == 200
    by_name = {entry["id"]: entry for entry in listed["data"]}
    assert by_name["small"]["aliases"] == ["models/small", "tiny"]
    assert {name: entry["status"]["value"] for name, entry in by_name.items()} == {
        "small": "loaded",
        "asleep": "sleeping",
        "evicted": "unloaded",
        "fetched": "unloaded",
        "idle": "unloaded",
        "loading": "loading",
        "fetching": "downloading",
        "huge": "unloaded",
    }
    assert by_name["huge"]["status"] == {"value": "unloaded", "failed": True, "exit_code": 1, "args": []}


async def test_load_and_unload_become_wishes(stand):
    async with Pod() as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        stand.directory.put_model(model("idle", state="Idle"))
        stand.directory.put_model(model("huge", stalled=True, ready=False, stalled_reason="DoesNotFit", stalled_message="too big"))
        assert await post(stand, "/models/load", {"model": "idle"}) == (200, {"success": True})
        await stand.until(lambda: stand.sink.reports)
        wish = stand.sink.reports[-1].models[0].wish
        assert (stand.sink.reports[-1].models[0].name, wish.action) == ("models/idle", "Load")
        stand.directory.put_model(model("idle", state="Idle", acknowledged_wish=wish.id))
        assert (await post(stand, "/models/load", {"model": "small"}))[0] == 400
        assert (await post(stand, "/models/load", {"model": "none"}))[0] == 404
        status, body = await post(stand, "/models/load", {"model": "huge"})
        assert (status, body["error"]["code"]) == (503, "does_not_fit")
        assert (await post(stand, "/models/load", {}))[0] == 400
        assert (await post(stand, "/models/load", []))[0] == 400
        assert (await post(stand, "/models/unload", {"model": "idle"}))[0] == 400
        assert await post(stand, "/models/unload", {"model": "small"}) == (200, {"success": True})
        await stand.until(lambda: any(demand.wish and demand.wish.action == "Unload" for demand in stand.sink.reports[-1].models))


async def test_autoload_false_refuses_instead_of_waking(stand):
    stand.directory.put_model(model())
    status, _, body = await stand.chat(path="/v1/chat/completions?autoload=false")
    assert (status, json.loads(body)["error"]["code"]) == (400, "model_not_loaded")
    assert not stand.sink.reports
    async with Pod() as pod:
        stand.directory.put_replica(pod.view())
        assert (await stand.chat(path="/v1/chat/completions?autoload=false"))[0] == 200
        pod.admitting = False
        assert (await stand.chat(path="/v1/chat/completions?autoload=0"))[0] == 400


async def test_router_props_and_a_models_own(stand):
    async with Pod() as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        assert (await get(stand, "/props"))[1]["role"] == "router"
        assert (await get(stand, "/props?model=small"))[1]["pod"] == "pod-a"


async def test_a_model_that_was_unloaded_is_unloaded_until_it_runs_again(stand):
    async def value():
        (entry,) = (await get(stand, "/models"))[1]["data"]
        return entry["status"]["value"]

    async with Pod() as pod:
        stand.directory.put_model(model(state="Loaded"))
        stand.directory.put_replica(pod.view())
        assert await post(stand, "/models/unload", {"model": "small"}) == (200, {"success": True})
        assert await value() == "loaded"  # it is the operator that unloads
        pod.admitting = False
        stand.directory.put_replica(pod.view(state="Sleeping"))
        stand.directory.put_model(model(state="Sleeping"))
        assert await value() == "unloaded"
        assert (await post(stand, "/models/unload", {"model": "small"}))[0] == 400
        for state, told in (("Loading", "loading"), ("Loaded", "loaded"), ("Sleeping", "sleeping")):
            stand.directory.put_model(model(state=state))
            assert await value() == told
        reports = len(stand.sink.reports)
        assert await post(stand, "/models/unload", {"model": "small"}) == (200, {"success": True})  # asleep: nothing has to be done
        assert await value() == "unloaded"
        assert not any(demand.wish and demand.wish.action == "Unload" for report in stand.sink.reports[reports:] for demand in report.models)


async def test_paths_without_a_version_reach_the_pod_under_the_name_it_knows(stand):
    async with Pod() as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        for path in ("/chat/completions", "/chat/completions/input_tokens", "/responses", "/responses/input_tokens"):
            assert (await stand.chat(path=f"{path}?autoload=true"))[0] == 200
            assert pod.seen[-1][1] == f"/v1{path}?autoload=true"
        assert (await stand.chat(path="/completions"))[0] == 200
        assert pod.seen[-1][1] == "/completions"  # llama.cpp's own, which is another than /v1/completions


async def test_web_pages_ask_first_and_read_answers(stand_up):
    here, elsewhere = "http://localhost:3000", "https://app.example"
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    key, fields = new_key("team")
    store = MemoryKeys()
    store.put(parse_key("team", fields))
    for keys, readers in ((None, {here}), (store, {here, elsewhere})):
        stand = await stand_up(keys=keys)
        async with Pod() as pod:
            stand.directory.put_model(model())
            stand.directory.put_replica(pod.view())
            for origin in (here, elsewhere):
                headers = {"Origin": origin}
                allowed = origin if origin in readers else None
                async with stand.client.options(stand.url + "/v1/chat/completions", headers=headers | asks) as response:
                    assert response.status == 200
                    assert response.headers.get("Access-Control-Allow-Origin") == allowed
                    assert response.headers["Access-Control-Allow-Headers"] == asks["Access-Control-Request-Headers"]
                    assert "POST" in response.headers["Access-Control-Allow-Methods"]
                status, answered, _ = await stand.chat(headers=headers | {"Authorization": f"Bearer {key}"})
                assert (status, answered.get("Access-Control-Allow-Origin"), answered["Vary"]) == (200, allowed, "origin")
                assert "origin" not in pod.seen[-1][2]
                if keys is not None:
                    status, answered, _ = await stand.chat(headers=headers)
                    assert (status, answered.get("Access-Control-Allow-Origin")) == (401, allowed)  # a page must be able to read why
            _, answered, _ = await stand.chat(headers={"Authorization": f"Bearer {key}"})
            assert "Access-Control-Allow-Origin" not in answered


async def test_events_tell_of_states_and_progress(stand):
    async with Pod(state="Sleeping") as pod, RawClient(stand.server.port) as client:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        await client.send(b"GET /models/sse HTTP/1.1\r\nhost: x\r\n\r\n")
        await client.reader.readuntil(b": connected\n\n")

        async def event():
            line = (await client.reader.readuntil(b"}\n\n")).split(b"data: ")[1]
            return json.loads(line)

        asked = asyncio.ensure_future(stand.chat())
        await stand.until(lambda: pod.polls)
        await pod.become("Loading", progress=0.5)
        seen = [await event(), await event()]
        await pod.become("Loaded")
        seen.append(await event())
        assert (await asked)[0] == 200
        stand.directory.remove_model("models/small")
        seen.append(await event())
        assert [one["event"] for one in seen] == ["model_status"] * 3 + ["model_remove"]
        assert {one["model"] for one in seen} == {"small"}
        assert [one["data"]["status"] for one in seen[:3]] == ["unloaded", "loading", "loaded"]
        assert seen[1]["data"]["progress"] == {"stages": ["text_model"], "current": "text_model", "value": 0.5}
    await stand.until(lambda: not stand.gateway.router._subscribers)


async def test_event_streams_end_when_the_gateway_stops(stand_up):
    stand = await stand_up()
    async with RawClient(stand.server.port) as client:
        await client.send(b"GET /models/sse HTTP/1.1\r\nhost: x\r\n\r\n")
        await client.reader.readuntil(b": connected\n\n")
        await stand.server.stop()
        assert (await client.reader.read()).endswith(b"0\r\n\r\n")


def test_the_page_on_metrics_names_the_gateways_and_no_other():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text().split("# The gateway's metrics")[1]
    listed = {name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(corral_\w+)`", line)}
    assert listed == {family.name + ("_total" if family.type == "counter" else "") for family in Metrics().registry.collect()}


async def test_metrics_count_what_happened(stand):
    async with Pod(state="Sleeping") as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        asked = asyncio.ensure_future(stand.chat())
        await stand.until(lambda: pod.polls)
        async with stand.client.get(stand.admin + "/metrics") as response:
            assert 'corral_gateway_waiting{model="models/small"} 1.0' in await response.text()
        await pod.become("Loading")
        await stand.until(lambda: stand.gateway.machine.progress("models/small")[0] == "Loading")
        await pod.become("Loaded")
        await asked
        await stand.chat()
        await stand.chat(model="nobody")
        await stand.chat(model="nobody-else")
        await stand.at_rest()
        async with stand.client.get(stand.admin + "/metrics") as response:
            lines = (await response.text()).splitlines()
    for line in (
        'corral_gateway_requests_total{code="200",model="models/small"} 2.0',
        'corral_gateway_requests_total{code="404",model=""} 2.0',
        'corral_gateway_misses_total{model="models/small"} 1.0',
        'corral_gateway_hits_total{model="models/small"} 1.0',
        'corral_gateway_hold_seconds_count{model="models/small"} 1.0',
        'corral_gateway_cold_start_seconds_count{model="models/small",phase="load"} 1.0',
        'corral_gateway_cold_start_seconds_count{model="models/small",phase="first_token"} 1.0',
        'corral_gateway_in_flight{model="models/small"} 0.0',
    ):
        assert line in lines
    stand.directory.remove_model("models/small")
    async with stand.client.get(stand.admin + "/metrics") as response:
        assert "models/small" not in await response.text()
