"""`corral up` from outside: apply a folder, ask, swap, hold, refuse; edits while it runs."""

import asyncio
import time

import openai
import pytest
from tests.local.herd import ROOM, stream

ALPACA, BISON, CARIBOU = "I am alpaca.", "I am bison.", "I am caribou."


async def test_three_models_with_room_for_two_replace_the_least_recently_used(shared):
    herd = await shared(2)
    assert await herd.ask("a") == ALPACA
    assert await herd.ask("b") == BISON
    assert await herd.ask("a") == ALPACA
    assert await herd.ask("c") == CARIBOU
    await herd.until(lambda: herd.loaded() == {"a", "c"}, "b to be the one that went")
    assert herd.evictions() == {"a": 0, "b": 1, "c": 0}
    assert await herd.ask("b") == BISON
    await herd.until(lambda: herd.loaded() == {"b", "c"})
    assert herd.evictions() == {"a": 1, "b": 1, "c": 0}

    listed = herd.corral("get").stdout.splitlines()
    assert listed[0].split() == ["NAME", "READY", "STATE", "REPLICAS", "LOADED", "NODE", "MEMORY", "LASTUSED", "AGE"]
    assert [line.split()[:3] for line in listed[1:]] == [["a", "True", "Sleeping"], ["b", "True", "Loaded"], ["c", "True", "Loaded"]]
    explained = herd.corral("explain", "a").stdout
    assert explained.startswith("default/a is Sleeping\n")
    assert "evictions: 1" in explained
    assert " 640Mi " in herd.corral("top").stdout
    measured = herd.corral("metrics").stdout
    assert "corral_swaps_total 2.0" in measured, "the operator's"
    assert 'corral_gateway_requests_total{code="200",model="default/a"} 2.0' in measured, "the gateway's"


async def test_ten_at_once_for_a_model_at_rest_are_held_and_cause_one_load(herd):
    herd.pool(ROOM[2])
    herd.model("a", ALPACA)
    herd.model("b", BISON)
    herd.start()
    await herd.ready("a", "b")
    assert await asyncio.gather(*(herd.ask("a") for _ in range(10))) == [ALPACA] * 10
    assert herd.supervisor("a")["loads"] == 1
    async with herd.openai() as client:
        held = await client.chat.completions.with_raw_response.create(model="b", messages=[{"role": "user", "content": "x"}], max_tokens=8)
        again = await client.chat.completions.with_raw_response.create(model="b", messages=[{"role": "user", "content": "x"}], max_tokens=8)
    assert int(held.headers["x-corral-waited-ms"]) > 0
    assert "x-corral-waited-ms" not in again.headers


async def test_an_unknown_model_is_404_and_one_that_never_fits_503_at_once(herd):
    herd.pool(ROOM[1])
    herd.model("a", ALPACA)
    herd.model("huge", "I am mammoth.", engine={"contextLength": 65536, "kvTokens": 262144})
    herd.start()
    await herd.ready("a")
    assert await herd.ask("a") == ALPACA
    await herd.until(lambda: herd.condition("huge", "Stalled").get("status") == "True", "huge to be Stalled")
    async with herd.openai() as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
        assert unknown.value.code == "model_not_found"
        began = time.monotonic()
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.create(model="huge", messages=[{"role": "user", "content": "x"}])
    assert (refused.value.status_code, refused.value.code) == (503, "does_not_fit")
    assert time.monotonic() - began < 30  # the hold is 60 s: it was not held
    assert herd.loaded() == {"a"}
    assert herd.evictions() == {"a": 0, "huge": 0}
    assert "default/huge is DoesNotFit" in herd.corral("explain", "huge").stdout
    assert [line.split()[1:3] for line in herd.corral("get").stdout.splitlines() if line.startswith("huge")] == [["False", "DoesNotFit"]]


async def test_a_model_that_streams_is_not_evicted(herd):
    herd.pool(ROOM[1], fairness={"maxWait": "40s", "turn": "1s"}, hold={"timeout": "120s"})
    herd.model("a", "I am alpaca, and I go on.", loop=True)
    herd.model("b", BISON)
    herd.start()
    await herd.ready("a", "b")
    async with herd.openai() as client:
        answer = stream(client, "a", max_tokens=60000)
        await anext(answer)
        waiting = asyncio.create_task(herd.ask("b"))
        await herd.until(lambda: herd.waits("b"), "b to wait")
        explained = herd.corral("explain", "b").stdout
        assert "default/a" in explained
        assert "InFlight" in explained or "in flight" in explained
        for _ in range(50):
            await anext(answer)
        assert not waiting.done()
        assert herd.loaded() == {"a"}
        await answer.aclose()
        assert await waiting == BISON
    await herd.until(lambda: herd.loaded() == {"b"})


async def test_edits_additions_and_removals_are_reconciled_live(herd):
    herd.pool(ROOM[2])
    herd.model("a", ALPACA)
    herd.start()
    await herd.ready("a")
    assert await herd.ask("a") == ALPACA
    herd.model("b", BISON, aliases=["second"])
    await herd.ready("b")
    assert await herd.ask("second") == BISON
    herd.model("a", "I am antelope.")
    await herd.until(lambda: herd.status("a").get("observedGeneration") == 2)
    await herd.until(lambda: [pod["restarts"] for pod in herd.pods("a")] in ([], [0]))
    limit = time.monotonic() + 30
    while (said := await herd.ask("a")) != "I am antelope.":
        assert said == ALPACA  # the former revision may answer until it is replaced
        assert time.monotonic() < limit
        await asyncio.sleep(0.1)
    herd.remove("b")
    await herd.until(lambda: herd.pods("b") == [], "b's processes to end")
    async with herd.openai() as client:
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="second", messages=[{"role": "user", "content": "x"}])


async def test_a_bad_file_is_told_and_disturbs_nothing(herd):
    herd.pool(ROOM[2])
    herd.model("a", ALPACA)
    herd.start()
    await herd.ready("a")
    assert await herd.ask("a") == ALPACA
    loads = herd.supervisor("a")["loads"]
    herd.model("a", ALPACA, engine={"slots": 0})
    await herd.until(lambda: herd.state()["problems"], "the problem to be told")
    (problem,) = herd.state()["problems"]
    assert f"{herd.folder}/a.yaml:1: ModelDeployment a: spec.engine.slots: Invalid value: 0: " in problem
    assert "greater than or equal to 1" in problem
    assert f"error: {herd.folder}/a.yaml:1: ModelDeployment a: spec.engine.slots" in herd.log.read_text()
    assert await herd.ask("a") == ALPACA
    assert herd.supervisor("a")["loads"] == loads
    assert herd.status("a")["observedGeneration"] == 1


async def test_what_cannot_be_a_model_ends_stalled_with_its_cause_and_disturbs_no_other(herd, tmp_path):
    (tmp_path / "text.gguf").write_text("this is no model")
    herd.pool(ROOM[2])
    herd.model("a", ALPACA)
    herd.model("gone", "", source=f"file://{tmp_path}/nowhere.gguf")
    herd.model("text", "", source=f"file://{tmp_path}/text.gguf")
    herd.start()
    await herd.ready("a")
    for name, reason in (("gone", "SourceNotFound"), ("text", "NotAGGUF")):
        await herd.until(lambda name=name, reason=reason: herd.condition(name, "Stalled").get("reason") == reason, f"{name} to be {reason}")
    assert await herd.ask("a") == ALPACA
    async with herd.openai() as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.create(model="text", messages=[{"role": "user", "content": "x"}])
    assert refused.value.status_code == 503


async def test_a_conversation_goes_on_from_its_response_after_its_model_gave_way(shared):
    herd = await shared(1)
    async with herd.openai() as client:
        first = await client.responses.create(model="a", input="Who are you?")
        assert first.output_text == ALPACA
        assert await herd.ask("b") == BISON
        await herd.until(lambda: herd.loaded() == {"b"}, "a to have given way")
        evictions = herd.evictions()
        assert (await client.responses.retrieve(first.id)).output_text == ALPACA
        (asked,) = (await client.responses.input_items.list(first.id)).data
        assert asked.content[0].text == "Who are you?"
        assert herd.loaded() == {"b"}, "reading wakes nobody"
        assert herd.evictions() == evictions
        second = await client.responses.create(model="a", input="And now?", previous_response_id=first.id)
        assert second.usage.input_tokens > first.usage.total_tokens
        with pytest.raises(openai.BadRequestError) as elsewhere:
            await client.responses.create(model="b", input="x", previous_response_id=first.id)
        assert elsewhere.value.code == "previous_response_not_found"
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError) as gone:
            await client.responses.retrieve(first.id)
        assert gone.value.code == "response_not_found"
        short = await client.responses.compact(model="b", input="Say who you are.")
        assert [item.type for item in short.output] == ["message", "compaction"]


async def test_presets_are_further_names_for_one_loaded_copy(herd):
    herd.pool(ROOM[1])
    presets = [{"name": "short", "sampling": {"maxTokens": 1}}, {"name": "polite", "systemPrompt": "Be polite."}]
    herd.model("a", ALPACA, engine={"presets": presets})
    herd.start()
    await herd.ready("a")
    async with herd.openai() as client:
        ask = {"messages": [{"role": "user", "content": "x"}]}
        whole = await client.chat.completions.create(model="a", **ask)
        short = await client.chat.completions.create(model="a:short", **ask)
        polite = await client.chat.completions.create(model="default/a:polite", **ask)
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (ALPACA, "stop")
        assert (short.usage.completion_tokens, short.choices[0].finish_reason, short.model) == (1, "length", "a:short")
        assert polite.usage.prompt_tokens > whole.usage.prompt_tokens
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="a:rude", **ask)
    assert herd.supervisor("a")["loads"] == 1


async def test_a_template_longer_than_one_environment_variable_reaches_its_server(herd):
    herd.pool(ROOM[1])
    herd.model("a", ALPACA, engine={"chatTemplate": "{# " + 30_000 * "\u7f8a" + " #}$$ {{ messages[0].content }}"})
    herd.start()
    await herd.ready("a")
    async with herd.openai() as client:
        body = {"model": "a", "messages": [{"role": "user", "content": "$(HOME)"}]}
        rendered = await client.post(str(client.base_url.join("/apply-template")), body=body, cast_to=object)
        assert rendered == {"prompt": "$$ $(HOME)"}
