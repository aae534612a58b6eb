"""Which requests are of one conversation, as far as their bodies tell."""

import json

import pytest

from corral.gateway.bodies import affinity_of

SYSTEM = {"role": "system", "content": "Be brief."}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def of(**body: object) -> int:
    return affinity_of(json.dumps({"model": "m", **body}).encode())


@pytest.mark.parametrize("field", ["messages", "input"])
@pytest.mark.parametrize("before", [[], [SYSTEM], [SYSTEM, {"role": "developer", "content": "x"}]], ids=["bare", "system", "two"])
def test_every_turn_of_a_conversation_is_alike(field: str, before: list[dict[str, str]]) -> None:
    first = [*before, user("Hello")]
    second = [*first, said("Hi."), user("And?")]
    third = [*second, said("So."), user("Then?")]
    assert of(**{field: first}) == of(**{field: second}) == of(**{field: third})
    assert of(**{field: first}) != of(**{field: [*before, user("Good day")]})


def test_what_stands_before_tells_conversations_apart() -> None:
    assert of(messages=[SYSTEM, user("a")]) != of(messages=[user("a")])
    assert of(input=[user("a")], instructions="x") != of(input=[user("a")], instructions="y")
    assert of(messages=[user("a")], system="x") != of(messages=[user("a")], system="y")
    assert of(input="a") != of(input="b")
    assert of(prompt="a") != of(prompt="b")
    assert of(messages=[user("a")], prompt_cache_key="k") == of(messages=[user("b")], prompt_cache_key="k")


@pytest.mark.parametrize("messages", [7, None, [7], [[]], [{"role": 7}], [{}] * 20, {"role": "user"}, []])
def test_what_is_no_conversation_harms_nothing(messages: object) -> None:
    assert of(messages=messages) == of(messages=messages) != 0


def test_what_is_no_json_has_none() -> None:
    assert affinity_of(b"{") == 0
    assert affinity_of(b"\xff") == 0
