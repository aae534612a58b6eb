"""The everyday paths, through real sockets: routing, holds, streams, reports, errors."""

import asyncio
import io
import json

import aiohttp
import pytest
from tests.gateway.conftest import model
from tests.gateway.peers import Pod, RawClient, post

from corral.gateway.ports import Condition, Hold
from corral.gateway.settings import GatewaySettings
from corral.views import model_view


async def test_a_request_goes_through_unchanged(stand):
    async with Pod() as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        body = b'{"stream": false,  "model":"small", "messages":[], "model" : "models\\/small"}'
        headers = {"content-type": "application/json", "x-request-id": "mine-1", "traceparent": "00-a-b-01", "authorization": "Bearer mine"}
        async with stand.client.post(stand.url + "/v1/chat/completions?x=1", data=io.BytesIO(body), headers=headers) as response:
            assert response.status == 200
            assert await response.json() == {"echo": len(body), "pod": "pod-a"}
            assert response.headers["x-request-id"] == "mine-1"
            assert response.headers["x-corral-model"] == "models/small"
            assert response.headers["x-corral-replica"] == "pod-a"
            assert "x-corral-waited-ms" not in response.headers
        method, path, sent, got = pod.seen[0]
        assert (method, path, got) == ("POST", "/v1/chat/completions?x=1", body)
        assert sent["x-corral-served-name"] == "models/small"  # of a key that is there twice the last counts
        assert sent["traceparent"] == "00-a-b-01"
        assert sent["x-request-id"] == "mine-1"
        assert "mine" not in sent["authorization"]


async def test_a_pod_hears_that_no_comments_are_wanted_and_nothing_else_of_ours_that_a_client_made_up(stand):
    async with Pod() as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        body = {"model": "small", "messages": []}
        for headers in ({"x-corral-hold": "Silent", "x-corral-served-name": "models/other"}, {"x-corral-hold": "loud"}):
            async with stand.client.post(stand.url + "/v1/chat/completions", json=body, headers=headers) as response:
                assert response.status == 200
    first, second = (sent for _, _, sent, _ in pod.seen)
    assert (first["x-corral-hold"], first["x-corral-served-name"]) == ("silent", "small")
    assert "x-corral-hold" not in second


async def test_a_stream_arrives_as_it_is_sent(stand):
    async with Pod() as pod:
        pod.chunks = [b"data: %d\n\n" % number for number in range(200)]
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        status, headers, body = await stand.chat(stream=True)
        assert (status, body) == (200, b"".join(pod.chunks))
        assert headers["x-accel-buffering"] == "no"
        assert headers["cache-control"] == "no-cache"


async def test_ten_requests_wait_for_one_load_and_are_answered(stand):
    async with Pod(state="Sleeping") as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        waiting = [asyncio.ensure_future(stand.chat(n=number)) for number in range(10)]
        await stand.until(lambda: stand.gateway.machine.waiting() == 10 and pod.polls)
        await stand.until(lambda: stand.sink.reports)
        demand = stand.sink.reports[0].models[0]
        assert (demand.name, demand.waiting > 0) == ("models/small", True)
        await pod.become("Loading", progress=0.5)
        await pod.become("Loaded")
        answers = await asyncio.gather(*waiting)
        assert {status for status, _, _ in answers} == {200}
        assert all(int(headers["x-corral-waited-ms"]) > 0 for _, headers, _ in answers)
        assert sorted(json.loads(body)["n"] for _, _, _, body in pod.seen) == list(range(10))
        await stand.until(lambda: (last := stand.sink.reports[-1].models[0]).waiting == 0 and last.in_flight == 0)
        demand = stand.sink.reports[-1].models[0]
        assert demand.in_flight == 0
        assert demand.last_used is not None
        sequences = [report.sequence for report in stand.sink.reports]
        assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))


async def test_a_draining_pod_puts_the_request_back_and_another_answers(stand):
    async with Pod("pod-a") as first, Pod("pod-b", state="Sleeping") as second:
        first.admitting = False  # its drain is not in any watch yet
        stand.directory.put_model(model(state="Loaded"))
        stand.directory.put_replica(first.view())
        stand.directory.put_replica(second.view())
        asked = asyncio.ensure_future(stand.chat(stream=True))
        await stand.until(lambda: stand.gateway.machine.waiting() == 1 and second.polls)
        assert first.refusals == 1
        await second.become("Loaded")
        status, headers, body = await asked
        assert (status, body) == (200, b"".join(second.chunks))
        assert headers["x-corral-replica"] == "pod-b"


async def test_a_pod_that_nobody_answers_at_counts_as_draining(stand):
    async with Pod("pod-a") as gone:
        view = gone.view()
    async with Pod("pod-b", state="Sleeping") as pod:
        stand.directory.put_model(model(state="Loaded"))
        stand.directory.put_replica(view)
        asked = asyncio.ensure_future(stand.chat())
        await stand.until(lambda: stand.gateway.machine.waiting() == 1)
        stand.directory.remove_replica("pod-a")
        stand.directory.put_replica(pod.view())
        await pod.become("Loaded")
        assert (await asked)[0] == 200


async def test_what_cannot_be_served_is_told_at_once(stand):
    stand.directory.put_model(
        model("huge", ready=False, stalled=True, stalled_reason="DoesNotFit", stalled_message="needs 41.2Gi; the largest device has 24Gi")
    )
    stand.directory.put_model(model("broken", ready=False, stalled=True, stalled_reason="NotAGGUF", stalled_message="http://x/y is HTML"))
    status, headers, body = await stand.chat(model="nobody")
    error = json.loads(body)["error"]
    assert (status, error["code"], error["type"], error["param"]) == (404, "model_not_found", "not_found_error", None)
    assert "'nobody'" in error["message"]
    status, headers, body = await stand.chat(model="huge", stream=True)
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (503, "does_not_fit")
    assert "41.2Gi" in error["message"]
    assert headers["content-type"] == "application/json"
    status, headers, body = await stand.chat(model="broken")
    error = json.loads(body)["error"]
    assert (status, error["code"], headers["retry-after"]) == (503, "load_failed", "10")
    assert "NotAGGUF: http://x/y is HTML" in error["message"]
    status, _, body = await stand.chat(model="nobody", path="/v1/messages")
    assert (status, json.loads(body)["type"], json.loads(body)["error"]["type"]) == (404, "error", "not_found_error")


async def test_a_load_that_fails_ends_every_wait_with_its_reason(stand):
    async with Pod(state="Sleeping") as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        waiting = [asyncio.ensure_future(stand.chat()) for _ in range(3)]
        await stand.until(lambda: stand.gateway.machine.waiting() == 3 and pod.polls)
        error = {"reason": "UnsupportedModel", "message": "unknown architecture 'x'", "retry": False, "at": "2099-01-01T00:00:00Z"}
        await pod.become("Failed", error=error)
        for status, _, body in await asyncio.gather(*waiting):
            assert status == 503
            assert "UnsupportedModel: unknown architecture 'x'" in json.loads(body)["error"]["message"]


async def test_the_status_of_the_model_ends_waits_too(stand):
    stand.directory.put_model(model())
    asked = asyncio.ensure_future(stand.chat())
    await stand.until(lambda: stand.gateway.machine.waiting() == 1)
    stand.directory.put_model(model(stalled=True, ready=False, stalled_reason="DoesNotFit", stalled_message="the pool shrank"))
    status, _, body = await asked
    assert (status, json.loads(body)["error"]["code"]) == (503, "does_not_fit")


async def test_a_hold_ends_in_time_and_says_why(stand):
    conditions = (Condition("Loaded", "False", "WaitingForMemory", "needs 3Gi; other in flight (2)"),)
    stand.directory.put_model(model(state="WaitingForMemory", conditions=conditions, hold=Hold(timeout=0.1)))
    status, headers, body = await stand.chat()
    error = json.loads(body)["error"]
    assert (status, error["code"], headers["retry-after"]) == (503, "hold_timeout", "10")
    assert "WaitingForMemory: needs 3Gi; other in flight (2)" in error["message"]
    assert int(headers["x-corral-waited-ms"]) >= 100


async def test_the_waiting_room_is_bounded(stand):
    stand.directory.put_model(model(hold=Hold(timeout=20, per_model=2, total=3)))
    stand.directory.put_model(model("other", hold=Hold(timeout=20, per_model=2, total=3)))
    asked = [asyncio.ensure_future(stand.chat()) for _ in range(2)]
    await stand.until(lambda: stand.gateway.machine.waiting() == 2)
    status, headers, body = await stand.chat()
    assert (status, json.loads(body)["error"]["code"], headers["retry-after"]) == (429, "hold_full", "10")
    asked.append(asyncio.ensure_future(stand.chat(model="other")))
    await stand.until(lambda: stand.gateway.machine.waiting() == 3)
    status, _, body = await stand.chat(model="other")
    assert (status, "hold.total 3" in json.loads(body)["error"]["message"]) == (429, True)
    stand.directory.remove_model("models/small")
    stand.directory.remove_model("models/other")
    assert [status for status, _, _ in await asyncio.gather(*asked)] == [404, 404, 404]


@pytest.mark.parametrize(
    ("path", "end"),
    [
        ("/v1/chat/completions", b'data: {"error":{"message":'),
        ("/v1/messages", b'event: error\ndata: {"type":"error","error":'),
        ("/v1/responses", b'event: error\ndata: {"type":"error","code":"hold_timeout"'),
    ],
)
async def test_a_long_wait_speaks_in_comments_and_ends_in_the_shape_of_its_api(stand, path, end):
    stand.directory.put_model(model(hold=Hold(timeout=0.3, heartbeat=0.1)))
    status, headers, body = await stand.chat(stream=True, path=path)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    events = body.split(b"\n\n")
    assert events[0].startswith(b": corral state=Sleeping waited=0s ahead=0")
    assert events[-2].startswith(end)
    assert events[-1] == b""


async def test_comments_come_before_the_stream_and_not_when_silent(stand):
    async with Pod(state="Sleeping") as pod:
        stand.directory.put_model(model(hold=Hold(timeout=20, heartbeat=0.05)))
        stand.directory.put_replica(pod.view())
        spoken = asyncio.ensure_future(stand.chat(stream=True))
        silent = asyncio.ensure_future(stand.chat(stream=True, headers={"x-corral-hold": "silent"}))
        await stand.until(lambda: stand.gateway.machine.waiting() == 2)
        await pod.become("Loading", progress=0.25)
        await asyncio.sleep(0.12)
        await pod.become("Loaded")
        status, _, body = await spoken
        assert status == 200
        assert b"state=Loading" in body
        assert b"progress=0.25 eta=" in body
        assert body.endswith(b"".join(pod.chunks))
        status, headers, body = await silent
        assert (status, body) == (200, b"".join(pod.chunks))
        assert int(headers["x-corral-waited-ms"]) > 0


async def test_a_client_that_leaves_frees_its_place_at_once(stand):
    async with Pod(state="Sleeping") as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        async with RawClient(stand.server.port) as client:
            await client.send(post())
            await stand.until(lambda: stand.gateway.machine.waiting() == 1)
        await stand.until(lambda: stand.gateway.machine.waiting() == 0)
        await stand.at_rest()
        await pod.become("Loaded")
        assert not pod.seen


async def test_a_client_that_leaves_its_stream_ends_it_at_the_pod(stand):
    async with Pod() as pod:
        pod.chunks = [b"data: x\n\n"] * 10_000
        pod.pause = 0.01
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        async with RawClient(stand.server.port) as client:
            await client.send(post(stream=True))
            await client.reader.readuntil(b"data: x\n\n")
            assert pod.in_flight == 1
        await stand.until(lambda: pod.in_flight == 0)
        await stand.at_rest()


async def test_names(stand):
    async with Pod() as pod:
        stand.directory.put_model(model(adapters=("sql",)))
        stand.directory.put_replica(pod.view())
        assert (await stand.chat(model="small:sql"))[0] == 200
        assert pod.seen[-1][2]["x-corral-adapter"] == "sql"
        assert pod.seen[-1][2]["x-corral-served-name"] == "small:sql"
        assert (await stand.chat(model="small:other"))[0] == 404
        async with stand.client.get(stand.url + "/props?model=small") as response:
            assert response.status == 200
        async with stand.client.get(stand.url + "/slots") as response:
            assert (response.status, (await response.json())["error"]["code"]) == (400, "missing_model")


async def test_a_preset_is_asked_for_as_an_adapter_is(stand):
    engine = {"adapters": [{"name": "sql", "source": "x"}], "presets": [{"name": "brief"}, {"name": "precise", "adapter": "sql"}]}
    status = {"servedNames": ["models/small", "small"], "conditions": [{"type": "Loaded", "status": "True", "reason": "Loaded"}]}
    view = model_view({"metadata": {"name": "small", "namespace": "models"}, "spec": {"engine": engine}, "status": status})
    async with Pod() as pod:
        stand.directory.put_model(view)
        stand.directory.put_replica(pod.view())
        for asked, name in (("small:brief", "brief"), ("models/small:precise", "precise"), ("small:sql", "sql")):
            assert (await stand.chat(model=asked))[0] == 200
            assert pod.seen[-1][2]["x-corral-adapter"] == name
            assert pod.seen[-1][2]["x-corral-served-name"] == asked
        before = len(pod.seen)
        status, _, body = await stand.chat(model="small:terse")
        assert (status, json.loads(body)["error"]["code"], len(pod.seen)) == (404, "model_not_found", before)
        async with stand.client.get(stand.url + "/v1/models") as response:
            listed = (await response.json())["data"]
        assert [entry["id"] for entry in listed] == ["models/small", "small", "small:sql", "small:brief", "small:precise"]
        assert [entry["corral"]["variant_of"] for entry in listed] == [None, None, "small", "small", "small"]
        assert [entry["corral"]["adapters"] for entry in listed] == [["sql", "brief", "precise"]] * 5
        async with stand.client.get(stand.url + "/v1/models/small:brief") as response:
            found = await response.json()
        assert (found["id"], found["corral"]["model"], found["corral"]["variant_of"]) == ("small:brief", "models/small", "small")
        async with stand.client.get(stand.url + "/v1/models/small:terse") as response:
            assert response.status == 404


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"[1]", 400, "invalid_request"),
        (b'{"messages": []}', 400, "missing_model"),
        (b'{"model": 3}', 400, "invalid_request"),
        (b'{"model": "small"', 400, "invalid_json"),
        (b'\xff{"model": "small"}', 400, "invalid_json"),
        (b'{"messages": [{"model": "small"}]}', 400, "missing_model"),
    ],
)
async def test_bodies_that_cannot_be_routed(stand, body, status, code):
    stand.directory.put_model(model())
    async with RawClient(stand.server.port) as client:
        await client.send(post(body=body))
        got, _, answer = await client.answer()
        assert (got, json.loads(answer)["error"]["code"]) == (status, code)
        await client.send(post(body=b"{}"))  # the connection is still in order
        assert (await client.answer())[0] == 400


async def test_the_escaped_model_key_is_understood(stand):
    async with Pod() as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        async with RawClient(stand.server.port) as client:
            await client.send(post(body=rb'{"\u006dodel": "sm\u0061ll"}'))
            assert (await client.answer())[0] == 200
        assert pod.seen[0][2]["x-corral-served-name"] == "small"


async def test_multipart_is_routed_by_its_field_wherever_it_stands(stand):
    async with Pod() as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        audio = bytes(range(256)) * 12_000
        body = (
            b'--xyz\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + audio + b"\r\n--xyz\r\n"
            b'content-disposition: form-data; name="model"\r\n\r\nsmall\r\n--xyz--\r\n'
        )
        headers = {"content-type": "multipart/form-data; boundary=xyz"}
        async with stand.client.post(stand.url + "/v1/audio/transcriptions", data=io.BytesIO(body), headers=headers) as response:
            assert response.status == 200
        assert (len(pod.seen[0][3]), pod.seen[0][3] == body) == (len(body), True)
        async with stand.client.post(stand.url + "/v1/audio/transcriptions", data=io.BytesIO(body[:-9]), headers=headers) as response:
            assert (response.status, "last boundary" in await response.text()) == (400, True)


async def test_held_bodies_go_to_disk_when_they_are_many(stand_up, tmp_path):
    stand = await stand_up(
        GatewaySettings(host="127.0.0.1", port=0, admin_host="127.0.0.1", admin_port=0, held_in_memory=100_000, spool_dir=tmp_path)
    )
    async with Pod(state="Sleeping") as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        texts = [str(number) * 60_000 for number in range(5)]
        asked = [asyncio.ensure_future(stand.chat(text=text)) for text in texts]
        await stand.until(lambda: stand.gateway.machine.waiting() == 5)
        assert stand.gateway.bodies.in_memory < 100_000
        await pod.become("Loaded")
        assert [status for status, _, _ in await asyncio.gather(*asked)] == [200] * 5
        assert sorted(json.loads(body)["text"] for _, _, _, body in pod.seen) == texts


async def test_models_are_listed_under_every_name(stand):
    stand.directory.put_model(model(aliases=("tiny",), served_names=("models/small", "small", "tiny"), adapters=("sql",)))
    stand.directory.put_model(model("nameless", served_names=()))
    async with stand.client.get(stand.url + "/v1/models") as response:
        listed = (await response.json())["data"]
    assert [entry["id"] for entry in listed] == ["models/small", "small", "small:sql", "tiny", "models/nameless"]
    tiny = listed[3]
    assert (tiny["object"], tiny["created"], tiny["owned_by"]) == ("model", 1_700_000_000, "models")
    assert (tiny["corral"]["state"], tiny["corral"]["alias_of"], tiny["corral"]["context_length"]) == ("Sleeping", "small", 4096)
    async with stand.client.get(stand.url + "/v1/models/models/small") as response:
        assert (await response.json())["id"] == "models/small"
    async with stand.client.get(stand.url + "/v1/models/nobody") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")


async def test_wrong_paths_and_methods(stand):
    async with stand.client.get(stand.url + "/v1/chat/completions") as response:
        assert (response.status, response.headers["allow"]) == (405, "POST")
    async with stand.client.post(stand.url + "/v2/chat") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "not_found")


async def test_an_unread_list_of_models_is_not_an_empty_one(stand):
    stand.directory.synced = False
    async with stand.client.get(stand.admin + "/readyz") as response:
        assert response.status == 503
    status, headers, body = await stand.chat()
    assert (status, json.loads(body)["error"]["code"], headers["retry-after"]) == (503, "not_ready", "1")
    stand.directory.synced = True
    async with stand.client.get(stand.admin + "/readyz") as response:
        assert response.status == 200


async def test_a_report_that_is_not_stored_is_sent_again(stand):
    stand.sink.fail = True
    stand.directory.put_model(model(hold=Hold(timeout=20)))
    asked = asyncio.ensure_future(stand.chat())
    await stand.until(lambda: stand.gateway.machine.waiting() == 1)
    await asyncio.sleep(0.05)
    assert not stand.sink.reports
    stand.sink.fail = False
    await stand.until(lambda: stand.sink.reports)
    assert stand.sink.reports[0].models[0].waiting == 1
    stand.directory.remove_model("models/small")
    assert (await asked)[0] == 404


async def test_stopping_lets_streams_finish_and_says_so_first(stand_up):
    stand = await stand_up()
    async with Pod() as pod:
        pod.gate = asyncio.Event()
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        asked = asyncio.ensure_future(stand.chat(stream=True))
        await stand.until(lambda: pod.in_flight == 1)
        stopping = asyncio.ensure_future(stand.server.stop())
        await stand.until(lambda: stand.gateway.stopping)
        async with stand.client.get(stand.admin + "/readyz") as response:
            assert (response.status, await response.text()) == (503, "stopping\n")
        pod.gate.set()
        status, headers, body = await asked
        assert (status, body) == (200, b"".join(pod.chunks))
        assert headers["connection"] == "close"
        await stopping


async def test_stopping_refuses_those_who_still_wait_at_the_end(stand_up):
    stand = await stand_up(GatewaySettings(host="127.0.0.1", port=0, admin_host="127.0.0.1", admin_port=0, grace=0.1))
    stand.directory.put_model(model())
    asked = asyncio.ensure_future(stand.chat())
    await stand.until(lambda: stand.gateway.machine.waiting() == 1)
    await stand.server.stop()
    status, headers, body = await asked
    assert (status, json.loads(body)["error"]["code"], headers["retry-after"]) == (503, "gateway_stopping", "1")


async def test_a_stopping_gateway_serves_for_as_long_as_somebody_still_sends(stand_up):
    settings = GatewaySettings(host="127.0.0.1", port=0, admin_host="127.0.0.1", admin_port=0, grace=20, settle=0.3)
    stand = await stand_up(settings)
    async with Pod() as pod:
        stand.directory.put_model(model())
        stand.directory.put_replica(pod.view())
        url = stand.url
        stopping = asyncio.ensure_future(stand.server.stop())
        await stand.until(lambda: not stand.gateway.ready)
        loop = asyncio.get_running_loop()
        end = loop.time() + 1.5
        while loop.time() < end:  # long after the settle time: this sender has not heard of the end
            assert (await stand.chat())[0] == 200
        await stopping
        with pytest.raises(aiohttp.ClientConnectorError):
            await stand.client.get(url)


async def test_a_replica_that_is_loaded_beside_another_gets_its_share(stand):
    async with Pod("pod-a", state="Sleeping") as first, Pod("pod-b", state="Sleeping") as second:
        stand.directory.put_model(model())
        for pod in (first, second):
            stand.directory.put_replica(pod.view())
        asked = asyncio.ensure_future(stand.chat())
        await stand.until(lambda: stand.gateway.machine.waiting() == 1 and first.polls)
        await first.become("Loaded")
        assert (await asked)[0] == 200
        await second.become("Loaded")  # nobody waits, so nobody asks it
        stand.directory.put_model(model(placements=(("pod-a", "Loaded"), ("pod-b", "Loaded"))))
        for number in range(20):
            assert (await stand.chat(messages=[{"role": "user", "content": str(number)}]))[0] == 200
        assert second.seen, "the second replica was never asked"
        before = len(second.seen)
        stand.directory.put_model(model(placements=(("pod-a", "Loaded"), ("pod-b", "Sleeping"))))
        await second.become("Sleeping")
        for number in range(20):
            assert (await stand.chat(messages=[{"role": "user", "content": str(number)}]))[0] == 200
        assert len(second.seen) == before
        assert second.refusals == 0
