"""Thoughts of a model whose template opens them: ended by a budget, left out, continued."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.harness import Server
from tests.server.test_responses import stream
from tests.support.gguf_files import sentence_model
from tests.support.models import smollm2

from corral_server.engine.budget import Budget
from corral_server.openai.errors import ApiError
from corral_server.openai.responses_request import to_chat

pytestmark = pytest.mark.model
THINKER = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}{# </think> #}"
)
ASK = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    engine = {"contextLength": 512, "kvTokens": 1024, "slots": 2, "chatTemplate": THINKER}
    with Server(smollm2().as_uri(), tmp_path_factory.mktemp("thinker"), engine=engine) as server:
        server.load()
        yield server


def said(server: Server, **body: Any) -> dict[str, Any]:
    answer = server.http.post("/v1/chat/completions", json={"messages": ASK, "max_tokens": 40, "temperature": 0, "ignore_eos": True, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]


def prompt(server: Server, **body: Any) -> str:
    return server.http.post("/apply-template", json={"messages": ASK, **body}).json()["prompt"]


def test_a_budget_ends_the_thought(thinker: Server):
    free = said(thinker)
    assert (free["content"], len(free["reasoning_content"]) > 60) == ("", True)
    short = said(thinker, reasoning_budget_tokens=4, reasoning_budget_message=" Enough of that.")
    assert short["reasoning_content"].endswith(" Enough of that.")
    assert free["reasoning_content"].startswith(short["reasoning_content"].removesuffix(" Enough of that."))
    assert short["content"]
    assert "reasoning_content" not in said(thinker, thinking_budget_tokens=0)
    assert said(thinker, reasoning_budget_tokens=-1) == free


def test_anthropics_budget_is_one(thinker: Server):
    body = {"messages": ASK, "max_tokens": 40, "temperature": 0, "thinking": {"type": "enabled", "budget_tokens": 4}}
    answer = thinker.http.post("/v1/messages", json=body).json()
    assert [block["type"] for block in answer["content"]] == ["thinking", "text"]
    wrong = thinker.http.post("/v1/messages", json={**body, "thinking": {"type": "enabled", "budget_tokens": "few"}})
    assert (wrong.status_code, "thinking.budget_tokens" in wrong.json()["error"]["message"]) == (400, True)


def test_a_thought_that_the_template_opens_can_be_left_out(thinker: Server):
    assert prompt(thinker).endswith("<think>\n")
    for wish in ({"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}):
        assert prompt(thinker, **wish).endswith("<think>\n</think>")
        assert "reasoning_content" not in said(thinker, **wish)


def test_a_thought_is_continued(thinker: Server):
    begun = {"role": "assistant", "content": "", "reasoning_content": "It is the"}
    assert prompt(thinker, messages=[*ASK, begun]).endswith("<think>\nIt is the")
    message = said(thinker, messages=[*ASK, begun], reasoning_budget_tokens=3)
    assert message["reasoning_content"]
    assert message["content"]
    whole = {"role": "assistant", "content": "Because", "reasoning_content": "It is the air."}
    assert prompt(thinker, messages=[*ASK, whole]).endswith("<think>\nIt is the air.</think>Because")
    assert prompt(thinker, messages=[*ASK, whole], continue_final_message="reasoning_content").endswith("<think>\nIt is the air.")


def spend(budget: Budget, tokens: list[int]) -> list[int]:
    """What comes out when the model wants these tokens: the forced ones instead, where there are any."""
    out = []
    for token in tokens:
        forced = budget.forced()
        out.append(token if forced is None else forced)
        budget.accept(out[-1])
    return out


def test_a_budget_counts_from_the_opening_to_the_closing():
    def budget(limit: int, *, thinking: bool = False) -> Budget:
        return Budget(limit, [1], [2, 3], [9, 2, 3], lambda token: token != 7, thinking=thinking)

    wanted = [5, 1, 4, 4, 4, 4, 4, 4]
    assert spend(budget(2), wanted) == [5, 1, 4, 4, 9, 2, 3, 4]
    assert spend(budget(0), wanted) == [5, 1, 9, 2, 3, 4, 4, 4]
    assert spend(budget(0, thinking=True), wanted) == [9, 2, 3, 4, 4, 4, 4, 4]
    assert spend(budget(99), wanted) == wanted
    # A model that ends by itself is left alone, even if it thinks again; a character is not cut in two.
    assert spend(budget(3), [1, 4, 2, 3, 1, 4, 4, 4, 4]) == [1, 4, 2, 3, 1, 4, 4, 4, 4]
    assert spend(budget(2), [1, 4, 7, 8, 4, 4]) == [1, 4, 7, 8, 9, 2]


def test_who_asks_for_summaries_gets_the_thought_as_one(thinker: Server):
    ask = {
        "input": ASK,
        "max_output_tokens": 40,
        "temperature": 0,
        "cache_prompt": False,
        "reasoning_budget_tokens": 12,
        "reasoning_budget_message": "",
    }
    plain = stream(thinker, ask)[-1]["response"]["output"]
    assert [(item["type"], item.get("summary")) for item in plain] == [("reasoning", []), ("message", None)]
    thought = plain[0]["content"][0]["text"]
    found = stream(thinker, {**ask, "reasoning": {"summary": "auto"}})
    whole = found[-1]["response"]
    assert whole["output"][0]["summary"] == [{"type": "summary_text", "text": thought}]
    assert (whole["output"][0]["content"], whole["reasoning"]["summary"]) == ([], "auto")
    assert "".join(e["delta"] for e in found if e["type"] == "response.reasoning_summary_text.delta") == thought
    kinds = [e["type"] for e in found if "summary" in e["type"] and not e["type"].endswith("delta")]
    assert kinds == [f"response.reasoning_summary_{kind}" for kind in ("part.added", "text.done", "part.done")]
    assert whole["output"][1]["content"][0]["text"] == plain[1]["content"][0]["text"]
    at_once = thinker.http.post("/v1/responses", json={**ask, "reasoning": {"summary": "detailed"}}).json()
    assert at_once["output"][0]["summary"][0]["text"] == thought
    # Sent back, it is the same thought.
    counts = []
    for answer in (plain, at_once["output"]):
        counted = thinker.http.post("/v1/responses/input_tokens", json={"input": [*ASK, *answer, *ASK]})
        counts.append(counted.json()["input_tokens"])
    assert counts[0] == counts[1]


def test_thoughts_of_earlier_turns_come_back_to_what_they_led_to():
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Blue?"}], "summary": []}
    said = {"role": "assistant", "content": "Because."}
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "sky"}
    body = to_chat({"input": [*ASK, thought, said, *ASK, thought, call, output, thought]}).body
    told = [(m["role"], m["content"], m.get("reasoning_content"), len(m.get("tool_calls", []))) for m in body["messages"]]
    asked = ("user", ASK[0]["content"], None, 0)
    assert told == [
        asked,
        ("assistant", "Because.", "Blue?", 0),
        asked,
        ("assistant", None, "Blue?", 1),
        ("tool", "sky", None, 0),
        ("assistant", None, "Blue?", 0),
    ]
    short = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "In short"}]}
    assert to_chat({"input": [short]}).body["messages"][0]["reasoning_content"] == "In short"
    with pytest.raises(ApiError) as caught:
        to_chat({"input": [{"type": "reasoning", "content": ["no part"]}]})
    assert caught.value.param == "input[0].content"


def test_a_template_that_knows_no_such_wish_is_answered_for(tmp_path: Path):
    """Command R's: the model was trained to pass over a thought that is empty."""
    marks = "{# <|START_ACTION|> <|START_THINKING|> <|END_THINKING|> #}"
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|CHATBOT_TOKEN|>{% endif %}" + marks
    with Server(sentence_model().as_uri(), tmp_path, engine={"chatTemplate": template}) as server:
        server.load()
        assert prompt(server).endswith("<|CHATBOT_TOKEN|>")
        closed = prompt(server, chat_template_kwargs={"enable_thinking": False})
        assert closed.endswith("<|CHATBOT_TOKEN|><|START_THINKING|><|END_THINKING|>")
        assert server.http.get("/props").json()["chat_template"] == template
