"""Chat templates with habits of their own, small ones written for this: what they need is found out, and messages are brought to it."""

import json

import jinja2
import pytest

from corral_server.renderer import Renderer
from corral_server.rendering import CHATML, template_variables

USER, SYSTEM = {"role": "user", "content": "hi <b>"}, {"role": "system", "content": "be brief"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"city": "Zürich"}}}
TURN = {"role": "assistant", "content": None, "tool_calls": [CALL]}
PARTS = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
ONLY_PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}|{% endfor %}{% endfor %}"
NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}[{{ m.content }}]{% endfor %}"
SILENT = "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}"
CALLS = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}CALL{% endfor %}{% endfor %}"
SHOWN = {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "see <mark>"}, {"type": "text", "text": "there"}]}
TOLD = {**SHOWN, "content": "see <mark>"}
EACH_PART = "{% for p in m.content %}{{ p.text }}|{% endfor %}"
SEEN = "{% if m.role == 'tool' %}RESULT{% elif m.content is string %}{{ m.content }}{% else %}" + EACH_PART + "{% endif %}"
RESULTS = "{% for m in messages %}" + SEEN + "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
ADDED, DUMPED = RESULTS.replace("RESULT", "{{ '[' + m.content + ']' }}"), RESULTS.replace("RESULT", "{{ m.content | tojson }}")
EACH = RESULTS.replace("RESULT", "{% for p in m.content %}{{ p.text }}+{% endfor %}")
EITHER = RESULTS.replace(
    "RESULT", "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}+{% endfor %}{% endif %}"
)
AS_OBJECT, AS_TEXT = CALLS.replace("CALL", "{{ c.function.arguments | tojson }}"), CALLS.replace("CALL", "{{ '<' + c.function.arguments + '>' }}")


def say(template: str, *messages: dict, tools: list | None = None, **extra: object) -> str:
    return Renderer().render({"template": template, "variables": template_variables(list(messages), tools, extra, bos="<s>", eos="</s>")})


@pytest.mark.parametrize(
    ("template", "messages", "prompt"),
    [
        (CHATML, [SYSTEM, USER], "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi <b><|im_end|>\n<|im_start|>assistant\n"),
        (CHATML, [PARTS], "<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n"),
        (ONLY_PARTS, [USER], "hi <b>|"),
        (ONLY_PARTS, [PARTS], "a|b|"),
        (NO_SYSTEM, [SYSTEM, USER], "[be brief\nhi <b>]"),
        (SILENT, [SYSTEM, USER], "[be brief\nhi <b>]"),
        (SILENT, [SYSTEM], "[be brief]"),
        (AS_OBJECT, [USER, TURN], 'hi <b>{"city": "Zürich"}'),
        (AS_TEXT, [USER, TURN], 'hi <b><{"city": "Zürich"}>'),
        (ADDED, [PARTS, TURN, SHOWN], 'a|b|{"city": "Zürich"}[see <mark>\nthere]'),
        (DUMPED, [PARTS, TURN, SHOWN], 'a|b|{"city": "Zürich"}"see <mark>\\nthere"'),
        (EACH, [PARTS, TURN, SHOWN], 'a|b|{"city": "Zürich"}see <mark>+there+'),
        (EACH, [PARTS, TURN, TOLD], 'a|b|{"city": "Zürich"}see <mark>+'),
        (EITHER, [PARTS, TURN, SHOWN], 'a|b|{"city": "Zürich"}see <mark>+there+'),
        (EITHER, [PARTS, TURN, TOLD], 'a|b|{"city": "Zürich"}see <mark>'),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", [USER], "hi <b>"),
        ("{% set l = [] %}{% set _ = l.append(messages[0].content | e) %}{{ l[0] }}", [USER], "hi <b>"),
        ("{{ messages[0].content | tojson }}{{ enable_thinking }}{{ bos_token }}", [USER], '"hi <b>"True<s>'),
    ],
)
def test_a_template_gets_what_it_can_take(template: str, messages: list[dict], prompt: str):
    assert say(template, *messages) == prompt


def test_the_caller_may_set_variables():
    assert say("{{ enable_thinking }}{{ mood }}", USER, enable_thinking=False, mood="fine") == "Falsefine"


def test_tools_are_there_only_when_given():
    template = "{% if tools is defined %}{{ tools | length }}{% else %}none{% endif %}"
    assert (say(template, USER), say(template, USER, tools=[{}])) == ("none", "1")


def test_a_template_reaches_nothing_of_the_process():
    for hostile in ("{{ messages.__class__.__mro__ }}", "{{ ''.__class__.__subclasses__() }}", "{{ raise_exception.__globals__ }}"):
        with pytest.raises(jinja2.TemplateError):
            say(hostile + "{{ messages.__class__.__mro__[0].x }}", USER)


def test_tools_as_text_under_their_older_name():
    template = "{{ 'Functions: ' + functions + datetime[:0] }}{% for m in messages %}[{{ m.role }} {{ m.content }}]{% endfor %} functools["
    assert say(template, SYSTEM, USER) == "Functions: [system be brief][user hi <b>] functools["
    tool = {"type": "function", "function": {"name": "f"}}
    assert say(template, USER, tools=[tool]) == f"Functions: {json.dumps([tool], indent=2)}[user hi <b>] functools["
