"""Tools beside the common ones: custom ones that take free text, namespaces, `functions` of old, Anthropic's own types."""

import json

import pytest
from anthropic.types import Message
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from tests.server.harness import Server
from tests.server.test_responses import stream
from tests.server.test_serving import events, strict
from tests.server.test_tools import ASK, WEATHER, arguments_fit

from corral_server.anthropic.request import to_chat as from_messages
from corral_server.openai.custom_tools import FreeText, as_arguments
from corral_server.openai.errors import ApiError
from corral_server.openai.messages import parse_messages
from corral_server.openai.responses_request import to_chat as from_responses
from corral_server.openai.tools import parse_tools

CODE = {"name": "run", "description": "Runs Python."}
DIGITS = {"name": "dial", "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "^[0-9]{3}-[0-9]{2}$"}}}
LARK = {"type": "grammar", "syntax": "lark", "definition": 'start: "a"+'}
ANSWER = {"model": "m", "input": "What is the weather in Paris?", "temperature": 0, "max_output_tokens": 60, "cache_prompt": False}


def read(arguments: str, cuts: list[int]) -> str:
    text, at, found = FreeText(), 0, ""
    for cut in [*sorted(c % (len(arguments) + 1) for c in cuts), len(arguments)]:
        found += text.feed(arguments[at:cut])
        at = cut
    return found + text.finish()


@given(st.text(), st.lists(st.integers(0, 200), max_size=8), st.booleans())
def test_free_text_comes_whole_however_it_is_cut(text: str, cuts: list[int], ascii_only: bool):
    # Characters as they are, and with every one escaped that can be, pairs of halves too.
    assert read(json.dumps(as_arguments(text), ensure_ascii=ascii_only), cuts) == text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"input": "half a wo', "half a wo"), ('{"input": "cut \\u00', "cut "), ('{"input": "cut \\', "cut "), ("print(1)", "print(1)"),
        ('"a string"', "a string"), ('{"code": "x"}', '{"code": "x"}'), ("{}", ""), ('{"input": "a\nb"}', "a\nb"), ('{"input": "\\q"}', "\\q"),
        ('{"input": "\\ud83d!"}', "\ufffd!"), ('{ "input" : "" , "more": "x"}', ""), ('{"input": "\\\\ud83d"}', "\\ud83d"),
    ],
)  # fmt: skip
def test_free_text_of_a_model_that_no_grammar_held(arguments: str, said: str):
    assert read(arguments, [*range(len(arguments))]) == said


def test_grammars_are_shown_as_schemas_or_in_words():
    box = parse_tools({"tools": [{"type": "custom", "custom": CODE}, {"type": "custom", "custom": DIGITS}], "tool_choice": "required"})
    assert box.customs.keys() == {"run", "dial"}
    assert box.schemas()[1]["properties"]["input"] == {"type": "string", "pattern": "^(?:^[0-9]{3}-[0-9]{2}$)$"}
    chat = from_responses({**ANSWER, "tools": [{"type": "custom", **CODE, "format": LARK}]})
    (tool,) = parse_tools(chat.body).tools
    assert tool["function"]["description"] == 'Runs Python.\nThe input has to follow this Lark grammar:\nstart: "a"+'


@pytest.mark.parametrize(
    ("custom", "field"),
    [
        ({"name": "a b"}, "tools[0].custom.name"), ({"name": "x", "format": {"type": "yaml"}}, "tools[0].custom.format.type"),
        ({"name": "x", "format": {"type": "grammar"}}, "tools[0].custom.format.grammar"),
        ({"name": "x", "format": {"type": "grammar", "grammar": {"syntax": "lark"}}}, "tools[0].custom.format.grammar"),
        ({"name": "x", "format": {"type": "grammar", "grammar": {"syntax": "ebnf", "definition": "a"}}}, "tools[0].custom.format.grammar.syntax"),
        ({"name": "x", "description": 3}, "tools[0].custom.description"), (None, "tools[0]"),
    ],
)  # fmt: skip
def test_a_wrong_custom_tool_is_named(custom: object, field: str):
    with pytest.raises(ApiError) as error:
        parse_tools({"tools": [{"type": "custom", "custom": custom}]})
    assert error.value.param == field


@pytest.mark.model
def test_a_custom_tool_is_called_with_text(smol: Server):
    body = {
        **ASK,
        "tools": [{"type": "custom", "custom": DIGITS}],
        "tool_choice": {"type": "custom", "custom": {"name": "dial"}},
        "cache_prompt": False,
    }
    answer = strict(ChatCompletion, smol.http.post("/v1/chat/completions", json=body).content)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.type, call.custom.name, answer.choices[0].finish_reason) == ("custom", "dial", "tool_calls")
    digits, more = call.custom.input.split("-")
    assert digits.isdigit()
    assert more.isdigit()
    deltas = [
        call
        for chunk in events(smol.http.post("/v1/chat/completions", json={**body, "stream": True}).text)
        for call in chunk["choices"][0]["delta"].get("tool_calls", [])
    ]
    assert (deltas[0]["type"], deltas[0]["custom"]["name"]) == ("custom", "dial")
    assert len(deltas) > 2
    assert "".join(d["custom"]["input"] for d in deltas) == call.custom.input
    history = [*ASK["messages"], answer.choices[0].message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "nobody answers"}]
    prompt = smol.http.post("/apply-template", json={"messages": history, "tools": body["tools"]}).json()["prompt"]
    assert call.custom.input in prompt
    assert "nobody answers" in prompt


@pytest.mark.model
def test_a_response_calls_custom_tools_and_those_of_a_namespace(smol: Server):
    tools = [
        {"type": "custom", "name": "dial", "format": {"type": "grammar", **DIGITS["format"]["grammar"]}},
        {"type": "namespace", "name": "phone", "description": "Telephones.", "tools": [{"type": "custom", "name": "hang_up"}]},
        {"type": "web_search", "external_web_access": False},
    ]  # fmt: skip
    ask = {**ANSWER, "tools": tools, "tool_choice": {"type": "custom", "name": "dial"}}
    answer = strict(Response, smol.http.post("/v1/responses", json=ask).content)
    (item,) = answer.output
    assert (item.type, item.name, item.namespace) == ("custom_tool_call", "dial", None)
    assert len(item.input) == 6
    assert [t.type for t in answer.tools] == ["custom", "namespace"]
    found = stream(smol, ask)
    assert "".join(e["delta"] for e in found if e["type"] == "response.custom_tool_call_input.delta") == item.input
    (done,) = [e for e in found if e["type"] == "response.custom_tool_call_input.done"]
    assert done["input"] == item.input
    forced = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "phone__hang_up"}]}
    (item,) = strict(Response, smol.http.post("/v1/responses", json={**ask, "tool_choice": forced}).content).output
    assert (item.name, item.namespace) == ("hang_up", "phone")
    back = [
        {"role": "user", "content": "Call them."},
        {"type": "custom_tool_call", "call_id": "c1", "name": "dial", "input": "123-45"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "nobody answers"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "hang_up", "namespace": "phone", "input": ""},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "done"}]},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
    ]
    assert smol.openai.responses.create(model="m", input=back, tools=tools, max_output_tokens=8).output


def test_a_response_names_what_it_was_called_and_leaves_out_what_nobody_runs():
    call = {"type": "function_call", "call_id": "c", "name": "find", "namespace": "crm", "arguments": "{}"}
    chat = from_responses({"input": [{"role": "user", "content": "x"}, call], "tools": [{"type": "web_search"}, {"type": "image_generation"}]})
    assert chat.body["messages"][1]["tool_calls"][0]["function"]["name"] == "crm__find"
    assert chat.body["tools"] == []
    assert list(chat.tools) == []
    for kind in ("mcp", "code_interpreter", "file_search", "local_shell"):
        with pytest.raises(ApiError) as error:
            from_responses({"input": "x", "tools": [{"type": kind}]})
        assert (error.value.param, error.value.code) == ("tools[0]", "unsupported_tool")


@pytest.mark.model
def test_a_tool_that_nobody_runs_cannot_be_forced(smol: Server):
    answer = smol.http.post("/v1/responses", json={**ANSWER, "tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tool_choice"


@pytest.mark.model
def test_functions_as_they_were_before_tools(smol: Server):
    body = {**ASK, "functions": [WEATHER["function"]], "function_call": {"name": "get_weather"}, "cache_prompt": False}
    answer = strict(ChatCompletion, smol.http.post("/v1/chat/completions", json=body).content)
    message = answer.choices[0].message
    assert (answer.choices[0].finish_reason, message.tool_calls, message.function_call.name) == ("function_call", None, "get_weather")
    arguments_fit(message.function_call.arguments)
    chunks = events(smol.http.post("/v1/chat/completions", json={**body, "stream": True}).text)
    for chunk in chunks:
        strict(ChatCompletionChunk, chunk)
    deltas = [c["choices"][0]["delta"]["function_call"] for c in chunks if "function_call" in c["choices"][0]["delta"]]
    assert deltas[0] == {"name": "get_weather", "arguments": ""}
    assert "".join(d["arguments"] for d in deltas) == message.function_call.arguments
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"
    result = {"role": "function", "name": "get_weather", "content": "sunny"}
    history = [*ASK["messages"], message.model_dump(exclude_none=True), result]
    prompt = smol.http.post("/apply-template", json={"messages": history, "functions": body["functions"]}).json()["prompt"]
    assert "Oslo" in prompt
    assert "sunny" in prompt
    refused = smol.http.post("/v1/chat/completions", json={**body, "function_call": {"name": "other"}}).json()["error"]
    assert refused["param"] == "function_call"


def test_what_other_servers_answer_may_be_sent_back():
    said = {"role": "assistant", "content": "Four.", "tool_calls": [], "reasoning": "Two and two."}
    (message,) = parse_messages({"messages": [said]})
    assert message == {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."}


def test_anthropics_own_tools_have_their_known_arguments():
    body = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    tools = [
        {"type": "bash_20250124", "name": "bash"}, {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool", "max_characters": 100},
        {"type": "text_editor_20250124", "name": "str_replace_editor"}, {"type": "memory_20250818", "name": "memory"},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}, {"type": "custom", "name": "mine", "input_schema": {"type": "object"}},
    ]  # fmt: skip
    shown = {t["function"]["name"]: t["function"]["parameters"] for t in from_messages({**body, "tools": tools}).body["tools"]}
    assert list(shown) == ["bash", "str_replace_based_edit_tool", "str_replace_editor", "memory", "mine"]
    assert "undo_edit" in shown["str_replace_editor"]["properties"]["command"]["enum"]
    assert "undo_edit" not in shown["str_replace_based_edit_tool"]["properties"]["command"]["enum"]
    for kind in ("computer_20250124", "code_execution_20250825", 3):
        with pytest.raises(ApiError) as error:
            from_messages({**body, "tools": [{"type": kind, "name": "x"}]})
        assert error.value.param == "tools[0]"


def test_what_anthropics_searches_left_in_earlier_turns_is_passed_over():
    blocks = [
        {"type": "text", "text": "I look it up."},
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}},
        {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []},
        {"type": "text", "text": "Found."},
    ]
    chat = from_messages({"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": blocks}]})
    assert chat.body["messages"][1] == {"role": "assistant", "content": "I look it up.\nFound."}


@pytest.mark.model
def test_a_shell_of_the_clients_is_called(smol: Server):
    body = {
        "model": "m", "max_tokens": 60, "temperature": 0, "messages": [{"role": "user", "content": "List the files."}],
        "tools": [{"type": "bash_20250124", "name": "bash"}], "tool_choice": {"type": "tool", "name": "bash"},
    }  # fmt: skip
    answer = strict(Message, smol.http.post("/v1/messages", json=body).content)
    (block,) = [b for b in answer.content if b.type == "tool_use"]
    assert block.name == "bash"
    assert set(block.input) <= {"command", "restart"}
