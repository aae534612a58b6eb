"""Grammars in Lark's language: a custom tool's text follows them, and what no grammar of llama.cpp can say is refused by name."""

import json
from typing import Any

import pytest
from tests.server.harness import Server
from tests.server.test_schema_counts import held

from corral_server.openai.tools import parse_tools
from corral_server.schema_counts import UnusableSchemaError
from corral_server.schema_merging import LARK
from corral_server.schemas import schema_rules

SUMS = """
start: sum
sum: sum ("+" | "-") product | product
product: product "*" value | value
value: NUMBER | NAME | "(" sum ")" | "if"i value~2..3
NAME: /[x-z]/ ["_"]
%import common.NUMBER
%import common.WS_INLINE
%ignore WS_INLINE
"""
PATCH = """
start: begin hunk+ end
begin: "*** Begin Patch" LF
end: "*** End Patch" LF?
hunk: add | update
add: "*** Add File: " filename LF ("+" /(.*)/ LF)+
update: "*** Update File: " filename LF (("@@" | "@@ " /(.+)/) LF | ("+" | "-" | " ") /(.*)/ LF)+ -> change
filename: /(.+)/
%import common.LF
"""


@pytest.mark.model
@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (SUMS, ["1", "x + y_ * 2.5", "(1-2)*z", "iF x y", "IF 1 2 3", " 1 "], ["", "1 +", "+1", "a", "x__", "(1", "if x", "1\n"]),
        (
            PATCH,
            [
                '*** Begin Patch\n*** Add File: a b.py\n+print("\\n")\n+\n*** End Patch',
                "*** Begin Patch\n*** Update File: a\n@@ def f\n-x\n+y\n z\n*** End Patch\n",
            ],
            ["*** Begin Patch\n*** End Patch", "*** Begin Patch\n*** Add File: a\nprint()\n*** End Patch", "*** Add File: a\n+x\n"],
        ),
        ('start: "a"? b*\nb: "b" | b "c"', ["", "a", "abccb", "b"], ["c", "ac", "aa"]),
        ('start: /[^"\\\\]*/s "\\"" /./', ['\n"x', '""'], ['"\n', "x"]),
    ],
)  # fmt: skip
def test_a_text_follows_its_grammar(grammar: str, good: list[str], bad: list[str]) -> None:
    schema = {"type": "object", "properties": {"input": {"type": "string", LARK: grammar}}, "required": ["input"]}
    assert [text for text in [*good, *bad] if held(schema, json.dumps({"input": text}))] == good


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ("start: nothing", "nothing"), ('begin: "a"', "start"), ("start: (", "Unclosed"),
        ("start: /(?=a)b/", "look around"), ("start: A\n%import .secret.A", "no files"), ("start: A\n%import nowhere.A", "nowhere"),
        ("start: /[/", "."),
        ('start: a\na: b "x" | "y"\nb: a', "begins with itself by way of another"), ('start: start "x"', "never ends"), ("", "start"),
    ],
)  # fmt: skip
def test_a_grammar_that_cannot_be_held_is_refused(grammar: str, says: str) -> None:
    schema = {"type": "object", "properties": {"input": {"type": "string", LARK: grammar}}}
    with pytest.raises(UnusableSchemaError, match=f"the Lark grammar: .*{says}"):
        schema_rules(schema, "")


def test_the_model_reads_the_grammar_once() -> None:
    form = {"type": "grammar", "grammar": {"syntax": "lark", "definition": SUMS}}
    box = parse_tools({"tools": [{"type": "custom", "custom": {"name": "sum", "description": "Adds.", "format": form}}]})
    assert json.dumps(box.tools).count("product") == SUMS.count("product")
    assert box.schemas() == [{**box.tools[0]["function"]["parameters"], "properties": {"input": {"type": "string", LARK: SUMS}}}]


@pytest.mark.model
def test_a_custom_tool_is_called_with_a_text_of_its_grammar(smol: Server) -> None:
    tool = {
        "type": "custom",
        "name": "apply_patch",
        "description": "Changes files.",
        "format": {"type": "grammar", "syntax": "lark", "definition": PATCH},
    }
    ask: dict[str, Any] = {
        "model": "m", "input": "Add a file hello.txt that says hello.", "tools": [tool], "tool_choice": "required", "temperature": 1.5, "seed": 3,
        "max_output_tokens": 300,
    }  # fmt: skip
    answer = smol.http.post("/v1/responses", json=ask).json()
    (call,) = answer["output"]
    assert (call["type"], call["name"]) == ("custom_tool_call", "apply_patch")
    lines = call["input"].split("\n")
    assert lines[0] == "*** Begin Patch"
    assert lines[1].startswith(("*** Add File: ", "*** Update File: "))
    wrong = smol.http.post("/v1/responses", json={**ask, "tools": [{**tool, "format": {**tool["format"], "definition": "start: none"}}]})  # type: ignore[dict-item]
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tools")
    assert "the Lark grammar: " in wrong.json()["error"]["message"]
