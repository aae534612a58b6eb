"""Client and reflector over real HTTP: paging, events, bookmarks, 410, silence, errors by their kind, and the leader's gate."""

from __future__ import annotations

import asyncio
import json
import re
import socket

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from corral.kube.client import AlreadyExists, KubeClient
from corral.kube.ports import Conflict, Gone, NotLeader, Refused, Unavailable
from corral.kube.watch import Reflector, Target


class Api:
    """Answers what a test prepared, request by request, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict]] = []
        self.lists: list = []
        self.watches: list = []
        self.over = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.asked.append((request.method, query))
        if "watch" not in query:
            return web.json_response(**self.lists.pop(0))
        steps = self.watches.pop(0) if self.watches else ["over"]
        response = web.StreamResponse()
        await response.prepare(request)
        for step in steps:
            if step in ("over", "silent"):
                if step == "over":
                    self.over.set()
                await asyncio.Event().wait()
            data = step if isinstance(step, bytes) else json.dumps(step).encode() + b"\n"
            await response.write(data)
        return response


def item(name: str, version: int, uid: str = "") -> dict:
    return {"metadata": {"name": name, "namespace": "n", "uid": uid or f"u-{name}", "resourceVersion": str(version), "managedFields": [1]}}


def page(items: list, version: int, token: str = "") -> dict:
    return {"data": {"items": items, "metadata": {"resourceVersion": str(version), "continue": token}}}


def event(kind: str, obj: dict) -> dict:
    return {"type": kind, "object": obj}


@pytest.fixture
async def api():
    return Api()


@pytest.fixture
async def client(api, tmp_path):
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", api.answer)
    server = TestServer(app, shutdown_timeout=0)
    await server.start_server()
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "t",
                "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}],
                "clusters": [{"name": "t", "cluster": {"server": f"http://127.0.0.1:{server.port}"}}],
                "users": [{"name": "t", "user": {"token": "secret"}}],
            }
        )
    )
    connected = await KubeClient.connect(user_agent="test", kubeconfig=str(kubeconfig))
    yield connected
    await connected.close()
    await server.close()


class Seen:
    def __init__(self) -> None:
        self.now: dict[str, str] = {}
        self.said: list = []

    def target(self) -> Target:
        return Target(self.put, self.remove, lambda: self.said.append("synced"))

    def put(self, obj) -> None:
        assert "managedFields" not in obj["metadata"]
        if obj["metadata"]["name"] == "poison":
            raise ValueError("cannot be read")
        self.now[obj["metadata"]["name"]] = obj["metadata"]["uid"]
        self.said.append(("put", obj["metadata"]["name"]))

    def remove(self, namespace, name, uid) -> None:
        assert self.now.pop(name) == uid
        self.said.append(("remove", name))


async def follow(client, api, seen, **options) -> Reflector:
    reflector = Reflector(client, "/api/v1/pods", seen.target(), jitter=lambda: 0.0, **options)
    task = asyncio.create_task(reflector.run())
    try:
        async with asyncio.timeout(20):
            await api.over.wait()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return reflector


async def test_pages_then_events(api, client):
    api.lists = [page([item("a", 1)], 10, "more"), page([item("b", 2)], 10)]
    split = json.dumps(event("DELETED", item("a", 13))).encode() + b"\n"
    api.watches = [
        [event("ADDED", item("c", 11)), event("BOOKMARK", {"metadata": {"resourceVersion": "12"}}), split[:20], split[20:]],
    ]
    seen = Seen()
    await follow(client, api, seen, labels="x=y", fields="spec.nodeName!=", page=1)
    assert seen.said == [("put", "a"), ("put", "b"), "synced", ("put", "c"), ("remove", "a")]
    first, second, watch, again = (query for _, query in api.asked)
    # Consistent: no resourceVersion on a list.
    assert first == {"labelSelector": "x=y", "fieldSelector": "spec.nodeName!=", "limit": "1"}
    assert again["resourceVersion"] == "13"
    assert second["continue"] == "more"
    assert (watch["resourceVersion"], watch["allowWatchBookmarks"], watch["timeoutSeconds"]) == ("10", "true", "240")


async def test_a_watch_that_ends_goes_on_where_it_was(api, client):
    api.lists = [page([], 10)]
    api.watches = [[event("BOOKMARK", {"metadata": {"resourceVersion": "25"}})], ["over"]]
    await follow(client, api, Seen())
    assert [query["resourceVersion"] for _, query in api.asked[1:]] == ["10", "25"]


async def test_gone_means_list_again_and_tell_who_left(api, client):
    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
    api.lists = [page([item("a", 1), item("b", 2), item("c", 3)], 10), page([item("b", 2), item("c", 30, "u-new")], 40)]
    api.watches = [[event("ERROR", status)], ["over"]]
    seen = Seen()
    await follow(client, api, seen)
    assert seen.said == [
        *[("put", name) for name in "abc"],
        "synced",
        ("put", "b"),
        ("remove", "c"),
        ("put", "c"),
        ("remove", "a"),
    ]
    assert seen.now == {"b": "u-b", "c": "u-new"}


async def test_a_connection_that_breaks_is_taken_up_again(api, client):
    api.lists = [page([], 10)]
    api.watches = [[event("ADDED", item("a", 11)), b'{"type": "ADD'], ["over"]]
    seen = Seen()
    await follow(client, api, seen)
    assert seen.now == {"a": "u-a"}
    assert api.asked[-1][1]["resourceVersion"] == "11"


async def test_an_object_that_cannot_be_read_hides_no_other(api, client):
    api.lists = [page([item("poison", 1), item("a", 2)], 10)]
    api.watches = [[event("MODIFIED", item("poison", 11)), event("ADDED", item("b", 12))], ["over"]]
    seen = Seen()
    await follow(client, api, seen)
    assert seen.said == [("put", "a"), "synced", ("put", "b")]
    assert len(api.asked) == 3


async def test_a_stream_that_is_silent_is_opened_anew_where_it_was(api, client):
    api.lists = [page([], 10)]
    api.watches = [[event("ADDED", item("a", 11)), "silent"], ["over"]]
    seen = Seen()
    await follow(client, api, seen, silence=0.2)
    assert seen.now == {"a": "u-a"}
    assert [query.get("resourceVersion") for _, query in api.asked] == [None, "10", "11"]


async def test_an_api_that_fails_is_asked_again(api, client):
    api.lists = [{"data": {"message": "etcd"}, "status": 500}, {"data": {"message": "no"}, "status": 403}, page([item("a", 1)], 10)]
    seen = Seen()
    reflector = await follow(client, api, seen)
    assert seen.said == [("put", "a"), "synced"]
    assert reflector.synced


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (404, "NotFound", Gone),
        (409, "Conflict", Conflict),
        (409, "AlreadyExists", AlreadyExists),
        (422, "Invalid", Refused),
        (403, "Forbidden", Refused),
        (429, "TooManyRequests", Unavailable),
        (401, "Unauthorized", Unavailable),
        (503, "", Unavailable),
    ],
)
async def test_errors_by_their_kind(api, client, status, reason, kind):
    api.lists = [{"data": {"message": "because of this", "reason": reason}, "status": status}]
    with pytest.raises(kind, match="because of this") as raised:
        await client.create("/api/v1/namespaces/n/pods", {})
    assert type(raised.value) is kind


async def test_an_api_that_is_not_there_is_unavailable(tmp_path, client):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = (tmp_path / "kubeconfig").read_text()
    (tmp_path / "kubeconfig").write_text(re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", text))
    nobody = await KubeClient.connect(user_agent="test", kubeconfig=str(tmp_path / "kubeconfig"))
    with pytest.raises(Unavailable):
        await nobody.get("/api/v1/nodes")
    await nobody.close()


async def test_a_write_needs_the_leaders_leave(api, client):
    with pytest.raises(NotLeader):
        await client.gated(lambda: False).create("/x", {})
    assert api.asked == []


async def test_leave_that_ends_before_the_bytes_are_written_stops_them(api, client):
    # The first look is before the request is built, the second when its head is about to be sent.
    answers = [True, False]
    with pytest.raises(NotLeader):
        await client.gated(lambda: answers.pop(0)).patch("/x", {})
    assert (api.asked, answers) == ([], [])


async def test_a_gated_write_is_bounded_on_both_sides(api, client):
    api.lists = [{"data": {"kind": "Pod"}}]
    assert await client.gated(lambda: True).apply("/x", {"a": 1}) == {"kind": "Pod"}
    assert api.asked == [("PATCH", {"fieldManager": "corral-operator", "force": "true", "timeout": "5s"})]


async def test_reads_need_no_leave(api, client):
    api.lists = [{"data": {"kind": "Node"}}]
    assert await client.gated(lambda: False).get("/x") == {"kind": "Node"}


async def test_what_kopf_is_told(client):
    told = await client.connection()
    assert told["token"] == "secret"
    assert told["server"].startswith("http://127.0.0.1:")
