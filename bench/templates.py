"""Compares our prompts with llama-server's, for a folder of chat templates.

`python bench/templates.py --llama-server PATH --templates DIR --model GGUF`

One llama-server a template, asked through `/apply-template`; ours come from the same code as the server's. Any small model will do: it is never run.
"""

import argparse
import difflib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "server_image"))

from corral_server.openai.errors import ApiError
from corral_server.openai.messages import parse_messages
from corral_server.openai.tools import parse_tools
from corral_server.renderer import Renderer
from corral_server.rendering import template_variables

USER = {"role": "user", "content": "What is <1 & 2>?"}
SYSTEM = {"role": "system", "content": 'Be "brief".'}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The city's weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "its name"}}, "required": ["city"]},
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Zürich"}'}}
BODIES: dict[str, dict[str, Any]] = {
    "one": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "turns": {"messages": [SYSTEM, USER, {"role": "assistant", "content": "Three."}, {"role": "user", "content": "Sure?"}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
    "tools": {"messages": [SYSTEM, USER], "tools": [TOOL]},
    "results": {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call00001", "content": "sunny"},
        ],
        "tools": [TOOL],
    },
}


def ask(url: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


def theirs(binary: str, model: str, template: Path) -> tuple[dict[str, str], str, str]:
    """llama-server's prompts (or its refusals, marked), and the two tokens that it renders with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        binary,
        "-m",
        model,
        "--port",
        str(port),
        "--jinja",
        "--chat-template-file",
        str(template),
        "--no-warmup",
        "-t",
        "1",
        "-c",
        "512",
        "-np",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                if ask(url + "/health")[0] == 200:
                    break
            except OSError:
                pass
            if process.poll() is not None:
                return dict.fromkeys(BODIES, "REFUSED: llama-server did not start"), "", ""
            time.sleep(0.05)
        properties = ask(url + "/props")[1]
        found = {}
        for name, body in BODIES.items():
            status, answer = ask(url + "/apply-template", body)
            found[name] = answer["prompt"] if status == 200 else "REFUSED: " + answer.get("error", {}).get("message", "")
        return found, properties.get("bos_token", ""), properties.get("eos_token", "")
    finally:
        process.kill()
        process.wait()


def ours(renderer: Renderer, template: str, body: dict[str, Any], bos: str, eos: str) -> str:
    try:
        variables = template_variables(parse_messages(body), list(parse_tools(body).tools) or None, {}, bos=bos, eos=eos)
        prompt = renderer.render({"template": template, "variables": variables})
    except ApiError as error:
        return f"REFUSED: {error}"
    except Exception as error:
        return f"REFUSED: {type(error).__name__}: {error}"
    return prompt[len(bos) :] if bos and prompt.startswith(bos) else prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--templates", required=True, type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--show", action="store_true", help="print where they differ")
    parser.add_argument("--only", default="", help="templates whose name holds this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write which prompts of which template differ")
    options = parser.parse_args()
    renderer = Renderer()
    same = total = 0
    differences: dict[str, list[str]] = {}
    for template in sorted(t for t in options.templates.glob("*.jinja") if options.only in t.name):
        wanted, bos, eos = theirs(options.llama_server, options.model, template)
        text = template.read_text(encoding="utf-8")
        differing = []
        for name, body in BODIES.items():
            mine, other = ours(renderer, text, body, bos, eos), wanted[name].removeprefix(bos)
            total += 1
            if mine == other or (mine.startswith("REFUSED") and other.startswith("REFUSED")):
                same += 1
                continue
            differing.append(name)
            if options.show:
                print(f"--- {template.stem}: {name}")
                print("\n".join(difflib.unified_diff(other.split("\n"), mine.split("\n"), "llama-server", "corral", lineterm="", n=0)))
        differences[template.stem] = differing
        print(f"{template.stem}: {'same' if not differing else 'differs: ' + ', '.join(differing)}", flush=True)
    print(f"{same} of {total} prompts are the same")
    if options.json:
        options.json.write_text(json.dumps({"same": same, "total": total, "differ": differences}, indent=1))


if __name__ == "__main__":
    main()
