"""Calls of tools, written by chat templates as earlier answers and read back by the server's reader: are they the same?

`python bench/calls.py --templates DIR`

The template of a model shows it its earlier calls in the form that it writes itself, so what comes back has to be what went in. Nothing is run.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "server_image"))

from corral_server.dialects.formats import GENERIC, Shape, dialect_of, thinking_of
from corral_server.dialects.reader import Reader
from corral_server.renderer import Renderer
from corral_server.rendering import template_variables

ASKED = "corral-asks"
PLAN = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "sure": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "where": {"type": "object"},
    },
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "It does.", "parameters": schema}}
    for name, schema in (("plan", PLAN), ("ping", {"type": "object", "properties": {}}))
]
CALLS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "text": [("plan", {"city": "Zürich, <b>"})],
    "lines": [("plan", {"city": "one\n  two\n\nthree"})],
    "quotes": [("plan", {"city": 'a "b" \\c'})],
    "number": [("plan", {"city": "5", "days": -3})],
    "others": [("plan", {"city": "Oslo", "sure": True, "note": None})],
    "nested": [("plan", {"city": "Oslo", "tags": ["a", "b c"], "where": {"x": {"y": [1, 2.5, "z"]}}})],
    "nothing": [("ping", {})],
    "two": [("plan", {"city": "Oslo"}), ("ping", {})],
}


def trip(template: str, calls: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, Any]]:
    """The calls as they are read from what the template writes of them."""
    dialect = dialect_of(template)
    told = [
        {"id": f"call0000{i}", "type": "function", "function": {"name": name, "arguments": arguments}} for i, (name, arguments) in enumerate(calls)
    ]
    messages = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "", "tool_calls": told}]
    asked, whole = (_said(template, some, prompt=prompt) for some, prompt in ((messages[:1], True), (messages, False)))
    # Some templates begin an earlier answer as they begin the next one, some leave its thought away.
    text = whole.removeprefix(asked) if whole.startswith(asked) else whole.rpartition(ASKED)[2]
    names, schemas = zip(*((t["function"]["name"], t["function"]["parameters"]) for t in TOOLS), strict=True)
    reader = Reader(dialect, names, schemas, thinking=thinking_of(template), harmony=dialect.shape is Shape.HARMONY)
    found: list[list[str]] = []
    for part in [*reader.feed(text), *reader.finish()]:
        if part.kind == "call":
            found.append([part.text, ""])
        elif part.kind == "arguments":
            found[part.call][1] += part.text
    return [(name, _json(arguments)) for name, arguments in found]


def _said(template: str, messages: list[dict[str, Any]], *, prompt: bool) -> str:
    variables = template_variables(messages, TOOLS, {"add_generation_prompt": prompt}, bos="<s>", eos="</s>")
    return Renderer().render({"template": template, "variables": variables})


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--templates", required=True, type=Path, help="a folder of .jinja files")
    for path in sorted(parser.parse_args().templates.glob("*.jinja")):
        template = path.read_text()
        dialect = dialect_of(template)
        if dialect is GENERIC:
            print(f"{path.name}: our own form")
            continue
        wrong = []
        for name, calls in CALLS.items():
            try:
                read = trip(template, calls)
            except Exception as error:
                wrong.append(f"{name} ({type(error).__name__}: {error})")
                continue
            if read != calls:
                wrong.append(f"{name} ({read})")
        print(f"{path.name}: {dialect.name}, {len(CALLS) - len(wrong)} of {len(CALLS)} read back" + "".join(f"\n  {w}" for w in wrong))


if __name__ == "__main__":
    main()
