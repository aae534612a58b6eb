"""A model with a projector: images and audio in every API, the prefix cache, wrong files, and the projector that does not fit."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.server.harness import ROOT, Server
from tests.support.projectors import Eyes, png, projector, wav
from tests.support.random_models import Shape, random_model

pytestmark = pytest.mark.model
MESSAGES = list[dict[str, Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    eyes = projector(Eyes())
    with Server(random_model(Shape("llama")).as_uri(), tmp_path_factory.mktemp("projector"), projector=eyes.as_uri()) as started:
        started.load()
        yield started


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def image(seed: int, **size: int) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded(png(seed, **size))}"}}


def sound(seed: int, seconds: float = 1.0) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": coded(wav(seed, seconds)), "format": "wav"}}


def said(server: Server, *parts: dict[str, Any] | str, **more: Any) -> Any:
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return server.openai.chat.completions.create(
        model="any", messages=[{"role": "user", "content": content}], max_tokens=8, temperature=0, logprobs=True, top_logprobs=5, **more
    )


def figures(answer: Any) -> list[float]:
    return [entry.logprob for entry in answer.choices[0].logprobs.content]


def cached(answer: Any) -> int:
    return answer.usage.prompt_tokens_details.cached_tokens


def test_the_model_says_what_it_takes(server: Server) -> None:
    assert server.http.get("/props").json()["modalities"] == {"vision": True, "video": False, "audio": True}
    models = server.http.get("/v1/models").json()
    assert models["models"][0]["capabilities"] == ["completion", "multimodal"]
    assert models["data"][0]["architecture"]["input_modalities"] == ["text", "image", "audio"]


@pytest.mark.parametrize("show", [image, sound])
def test_what_is_shown_decides_what_is_answered(server: Server, show: Any) -> None:
    one, other, again = (said(server, "what is it ", show(seed), extra_body={"cache_prompt": False}) for seed in (1, 2, 1))
    assert figures(one) != figures(other)
    assert figures(one) == pytest.approx(figures(again), abs=1e-3)
    assert one.choices[0].message.content == again.choices[0].message.content


def test_media_tokens_count(server: Server) -> None:
    text = said(server, "what is it ")
    seen, heard = said(server, "what is it ", image(3)), said(server, "what is it ", sound(3))
    # 64 x 64 pixels in patches of 8, of which 2 x 2 make a token, and the words that the kind of projector puts around an image.
    assert seen.usage.prompt_tokens - text.usage.prompt_tokens == 16 + len("<start_of_image><end_of_image>")
    # 30 s of 100 frames a second, halved by the encoder, four stacked to a token.
    assert heard.usage.prompt_tokens - text.usage.prompt_tokens == 375
    counted = server.http.post("/v1/chat/completions/input_tokens", json={"messages": [{"role": "user", "content": [image(3)]}]}).json()
    assert counted["input_tokens"] == said(server, image(3)).usage.prompt_tokens


def test_the_same_image_is_read_once_and_another_never_taken_for_it(server: Server) -> None:
    first = said(server, "look at this: ", image(11), " and say what it is")
    again = said(server, "look at this: ", image(11), " and say what it is")
    assert cached(again) == first.usage.prompt_tokens - 1
    assert figures(again) == pytest.approx(figures(first), abs=1e-2)
    other = said(server, "look at this: ", image(12), " and say what it is")
    before = said(server, "look at this: ").usage.prompt_tokens
    assert cached(other) < before + len("<start_of_image>")
    fresh = said(server, "look at this: ", image(12), " and say what it is", extra_body={"cache_prompt": False})
    assert figures(other) == pytest.approx(figures(fresh), abs=1e-2)


def test_a_conversation_about_an_image_goes_on(server: Server) -> None:
    opening = {"role": "user", "content": [{"type": "text", "text": "look"}, image(21)]}
    first = server.openai.chat.completions.create(model="any", messages=[opening], max_tokens=4, temperature=0)
    turns: MESSAGES = [opening, {"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "go on"}]
    following = server.openai.chat.completions.create(model="any", messages=turns, max_tokens=4, temperature=0)
    assert cached(following) > first.usage.prompt_tokens - 5


def test_several_at_once_answer_as_alone(server: Server) -> None:
    asks = [("one ", image(31)), ("two ", sound(31)), ("three ", image(32)), ("only text, long enough to take some steps to read",)]
    alone = [said(server, *ask, extra_body={"cache_prompt": False}) for ask in asks]
    together: dict[int, Any] = {}

    def run(index: int) -> None:
        together[index] = said(server, *asks[index], extra_body={"cache_prompt": False})

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(asks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, answer in enumerate(alone):
        assert figures(together[index])[0] == pytest.approx(figures(answer)[0], abs=0.02)
        assert together[index].usage.prompt_tokens == answer.usage.prompt_tokens


def test_several_images_and_several_answers(server: Server) -> None:
    answer = said(server, image(41), " beside ", image(42), sound(41), n=3)
    assert len({c.message.content for c in answer.choices}) == 1
    swapped = said(server, image(42), " beside ", image(41), sound(41))
    assert figures(swapped) != figures(answer)


def test_a_cancelled_request_frees_its_slot(server: Server) -> None:
    for seed in range(50, 56):
        with server.openai.chat.completions.create(
            model="any", messages=[{"role": "user", "content": [sound(seed)]}], max_tokens=200, stream=True
        ) as stream:
            next(iter(stream))
    assert said(server, "after").usage.prompt_tokens > 0
    assert all(not slot["is_processing"] for slot in server.http.get("/slots").json())


def test_the_other_apis(server: Server) -> None:
    picture = coded(png(1))
    answer = server.openai.responses.create(
        model="any",
        max_output_tokens=4,
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "hi"},
                    {"type": "input_image", "image_url": f"data:image/png;base64,{picture}", "detail": "auto"},
                ],
            }
        ],
    )
    chat = said(server, "hi", image(1))
    assert answer.usage is not None
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture}}
    body = {"max_tokens": 4, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, block]}]}
    usage = server.http.post("/v1/messages", json=body).json()["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == chat.usage.prompt_tokens
    assert server.http.post("/v1/messages/count_tokens", json={"messages": body["messages"]}).json()["input_tokens"] == chat.usage.prompt_tokens


CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def results(seed: int | None) -> dict[str, dict[str, Any]]:
    """A body for each API: a tool was called and answered, with an image unless the seed is None."""
    picture = "" if seed is None else coded(png(seed))
    parts: MESSAGES = [{"type": "input_text", "text": "seen: "}]
    blocks: MESSAGES = [{"type": "text", "text": "seen: "}]
    if picture:
        parts.append({"type": "input_image", "image_url": f"data:image/png;base64,{picture}"})
        blocks.append({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture}})
    ask, used = {"role": "user", "content": "look"}, {"type": "tool_use", "id": "c", "name": "look", "input": {}}
    given = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": blocks}]}
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    return {
        "chat/completions": {"messages": [ask, called, {"role": "tool", "tool_call_id": "c", "content": parts}]},
        "messages": {"messages": [ask, {"role": "assistant", "content": [used]}, given]},
        "responses": {"input": [ask, call, {"type": "function_call_output", "call_id": "c", "output": parts}]},
    }


COUNTS = {"chat/completions": "chat/completions/input_tokens", "messages": "messages/count_tokens", "responses": "responses/input_tokens"}


def test_what_a_tool_shows_is_seen_by_every_api(server: Server) -> None:
    seen, told = (
        {api: server.http.post(f"/v1/{COUNTS[api]}", json=body).json()["input_tokens"] for api, body in results(seed).items()} for seed in (5, None)
    )
    assert len(set(seen.values())) == 1
    assert {seen[api] - told[api] for api in COUNTS} == {16 + len("<start_of_image><end_of_image>")}
    more = {"max_tokens": 8, "temperature": 0, "logprobs": True, "cache_prompt": False}
    first, other, again = (
        server.http.post("/v1/chat/completions", json={**results(seed)["chat/completions"], **more}).json()["choices"][0]["logprobs"]["content"]
        for seed in (5, 6, 5)
    )
    one, two, three = ([entry["logprob"] for entry in found] for found in (first, other, again))
    assert one != two
    assert one == pytest.approx(three, abs=1e-3)
    answer = server.http.post("/v1/messages", json={**results(5)["messages"], "max_tokens": 4})
    assert answer.status_code == 200, answer.text
    assert (
        server.http.post("/v1/responses", json={**results(5)["responses"], "max_output_tokens": 4}).json()["usage"]["input_tokens"]
        == seen["responses"]
    )


def test_a_wrong_image_of_a_tool_has_the_clients_name(server: Server) -> None:
    named = {"chat/completions": "messages[2].content[1]", "messages": "messages[2].content[0].content[1]", "responses": "input[2].output[1]"}
    for api, body in results(5).items():
        wrong = json.loads(json.dumps(body).replace(coded(png(5)), coded(png(5)[:-40])))
        for path in (f"/v1/{api}", f"/v1/{COUNTS[api]}"):
            refused = server.http.post(path, json={**wrong, "max_tokens": 4})
            assert refused.status_code == 400
            assert f"{named[api]} is a damaged image" in refused.json()["error"]["message"]


def test_llama_cpps_own_form(server: Server) -> None:
    mark = server.http.get("/props").json()["media_marker"]

    def evaluated(text: str, *files: bytes) -> Any:
        prompt = {"prompt_string": text, "multimodal_data": [coded(f) for f in files]}
        return server.http.post("/completion", json={"prompt": prompt, "n_predict": 4, "temperature": 0})

    plain, own = evaluated("see <__media__> there", png(1)).json(), evaluated(f"see {mark} there", png(1)).json()
    assert plain["content"] == own["content"]
    assert plain["tokens_evaluated"] > 16
    both = evaluated("<__media__><__media__>", png(1), wav(1)).json()
    assert both["tokens_evaluated"] > 16 + 375
    wrong = evaluated("nothing is shown", png(1))
    assert wrong.status_code == 400
    assert "0 places" in wrong.json()["error"]["message"]


def test_a_recording_is_written_down(server: Server) -> None:
    transcript = server.openai.audio.transcriptions.create(model="any", file=("a.wav", wav(1)), temperature=0, extra_body={"max_tokens": 6})
    assert transcript.usage is not None
    assert transcript.usage.type == "tokens"
    assert transcript.usage.input_tokens > 375
    assert transcript.usage.output_tokens == 6
    more = {"max_tokens": 6}
    verbose = server.openai.audio.transcriptions.create(
        model="any", file=("a.wav", wav(1, 2.0)), response_format="verbose_json", language="de", temperature=0, extra_body=more
    )
    assert verbose.duration == pytest.approx(2.0, abs=0.01)
    assert verbose.language == "de"
    events = list(server.openai.audio.transcriptions.create(model="any", file=("a.wav", wav(1)), stream=True, temperature=0, extra_body=more))
    assert events[-1].type == "transcript.text.done"
    assert "".join(e.delta for e in events if e.type == "transcript.text.delta").strip() == events[-1].text == transcript.text
    plain = server.openai.audio.transcriptions.create(model="any", file=("a.wav", wav(1)), response_format="text", temperature=0, extra_body=more)
    assert plain.strip() == transcript.text
    with pytest.raises(openai.BadRequestError, match="file"):
        server.openai.audio.transcriptions.create(model="any", file=("a.wav", b"no sound"))


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, "fetches nothing"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}}, "not base64"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}, "data URL in base64"),
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded(png(1)[:-40])}"}}, "damaged image"),
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded(b'no image')}"}}, "no image that can be read"),
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded(wav(1))}"}}, "audio, not an image"),
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded(png(1, width=900, height=3))}"}}, "times the other"),
        ({"type": "image_url"}, "data URL"),
        ({"type": "input_audio", "input_audio": {"data": coded(png(1)), "format": "wav"}}, "no audio that can be read"),
        ({"type": "input_audio", "input_audio": {"data": coded(wav(1)[:50]), "format": "wav"}}, "audio"),
        ({"type": "input_audio", "input_audio": {"data": coded(wav(1, 0.0))}}, "audio"),
        ({"type": "input_audio", "input_audio": {}}, "data"),
        ({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA=="}}, "video_url"),
    ],
)
def test_a_wrong_part_is_named(server: Server, part: dict[str, Any], says: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        said(server, "look", part)
    assert says in str(caught.value)
    assert caught.value.param == "messages[0].content[1]"


def test_a_prompt_that_is_too_long_for_the_context(tmp_path: Path) -> None:
    eyes = projector(Eyes())
    with Server(random_model(Shape("llama")).as_uri(), tmp_path, projector=eyes.as_uri(), engine={"contextLength": 256}) as server:
        server.load()
        with pytest.raises(openai.BadRequestError) as caught:
            said(server, sound(1))
        assert caught.value.code == "context_length_exceeded"
        assert said(server, image(1)).usage.prompt_tokens < 256


def test_a_projector_of_another_model_is_a_load_that_failed(tmp_path: Path) -> None:
    with Server(random_model(Shape("llama")).as_uri(), tmp_path, projector=projector(Eyes(width=128)).as_uri()) as server:
        server.until("Sleeping")
        server.wake()
        status = server.until("Loaded", "Sleeping")
        assert status["state"] == "Sleeping"
        assert status["error"]["reason"] == "UnsupportedModel"
        assert "model.projector" in status["error"]["message"]
        assert "mismatch" in status["error"]["message"]


def test_a_projector_that_is_none_fails_before_the_load(tmp_path: Path) -> None:
    (tmp_path / "eyes.gguf").write_bytes(b"no projector at all")
    with Server(random_model(Shape("llama")).as_uri(), tmp_path / "server", projector=(tmp_path / "eyes.gguf").as_uri()) as server:
        assert server.until("Failed")["error"]["reason"] == "NotAGGUF"


@pytest.mark.parametrize(
    ("shape", "eyes"),
    [
        pytest.param(Shape("gemma3", window=64), Eyes(audio=""), id="window"),
        pytest.param(Shape("qwen2vl"), Eyes(vision="qwen2vl_merger", audio=""), id="positions-of-rows-and-columns"),
        pytest.param(Shape("lfm2"), Eyes(audio=""), id="partly-recurrent"),
    ],
)
def test_what_is_kept_of_an_image_is_right_with_every_memory(tmp_path: Path, shape: Shape, eyes: Eyes) -> None:
    more = " and then words enough for a window to pass over the image" * 3
    opening = ("look ", image(1, width=120, height=60), more)
    asks = [opening, opening, (*opening, " and more"), ("look ", image(2, width=120, height=60), more), opening, ("look",)]
    with Server(random_model(shape).as_uri(), tmp_path, projector=projector(eyes).as_uri(), engine={"slots": 2}) as server:
        server.load()
        for ask in asks:
            kept = said(server, *ask)
            fresh = said(server, *ask, extra_body={"cache_prompt": False})
            assert figures(kept)[0] == pytest.approx(figures(fresh)[0], abs=0.05)
            assert kept.usage.prompt_tokens == fresh.usage.prompt_tokens
        assert cached(said(server, *asks[0])) >= (0 if shape.architecture == "lfm2" else 10)


def test_an_image_is_seen_again_after_a_sleep(tmp_path: Path) -> None:
    with Server(random_model(Shape("llama")).as_uri(), tmp_path, projector=projector(Eyes()).as_uri()) as server:
        server.load()
        ask = ("what is it " * 12, image(1), "there")
        before = said(server, *ask)
        server.drain()
        server.sleep()
        server.load()
        other, after = said(server, ask[0], image(2), ask[2]), said(server, *ask)
        assert figures(after) == pytest.approx(figures(before), abs=0.02)
        assert figures(other) != figures(before)


def test_the_estimate_counts_the_projector(tmp_path: Path) -> None:
    model, eyes = random_model(Shape("llama")), projector(Eyes())
    plain, seeing = (estimated(tmp_path, {"source": model.as_uri(), "projector": found}) for found in ("", eyes.as_uri()))
    assert 0 <= eyes.stat().st_size - (seeing["weights"] - plain["weights"]) < 64 << 10
    assert seeing["compute"] > plain["compute"]
    assert seeing["output"] - plain["output"] == seeing["weights"] - plain["weights"]
    with Server(model.as_uri(), tmp_path / "server", projector=eyes.as_uri()) as server:
        held = server.load()["memory"]
        assert {kind: held[kind] for kind in ("weights", "kvCache", "compute")} == {kind: seeing[kind] for kind in ("weights", "kvCache", "compute")}
    wrong = estimated(tmp_path, {"source": model.as_uri(), "projector": model.as_uri()})
    assert not wrong["ok"]
    assert "model.projector" in wrong["message"]


def estimated(cache: Path, model: dict[str, str]) -> dict[str, Any]:
    told = {"CORRAL_SPEC": json.dumps({"model": model}), "CORRAL_ALLOW_LOCAL_SOURCES": "1", "CORRAL_CACHE_DIR": str(cache / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "corral_server", "estimate"],
        env={**os.environ, **told, "PYTHONPATH": str(ROOT / "server_image")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_more_requests_than_seats_are_all_answered_and_leave_nothing_behind(server: Server) -> None:
    before = _open_files(server.process.pid)
    answers: list[int] = []

    def run(seed: int) -> None:
        answers.append(said(server, image(seed), n=2).usage.prompt_tokens)

    threads = [threading.Thread(target=run, args=(60 + index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 12
    assert len(set(answers)) == 1
    assert not [name for name in _open_files(server.process.pid) - before if "corral-media" in name]


def _open_files(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:
            continue
    return found


def test_text_is_answered_while_a_recording_is_read(server: Server) -> None:
    order: list[str] = []

    def hear() -> None:
        said(server, *(sound(seed, 25.0) for seed in range(70, 74)))
        order.append("heard")

    thread = threading.Thread(target=hear)
    with server.openai.chat.completions.create(
        model="any", messages=[{"role": "user", "content": "tell"}], max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        events = iter(stream)
        next(events)
        thread.start()
        count = sum(1 for _ in events)
    order.append("told")
    thread.join()
    assert count > 100
    assert sorted(order) == ["heard", "told"]
