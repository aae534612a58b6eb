"""Writes the pinned requirements from what is installed: `python requirements/pin.py` after an upgrade in the virtual environment.

Each file holds what its extra (or list of tools) needs, with everything below it. No address of a registry gets in.
"""

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "corral"
HERE = Path(__file__).resolve().parent
TOOLS = {
    "demo": ["openai"],
    "test": ["pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "openai", "anthropic", "jsonschema", "lupa", "schemathesis", "llm-comply"],
    "lint": ["ruff", "mypy", "import-linter", "types-PyYAML", "types-jsonschema", "types-psutil", "packaging"],
}


def closure(wanted: list[Requirement], extras_of: dict[str, list[Requirement]]) -> dict[str, str]:
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = list(wanted)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name == PROJECT:
            waiting += [below for extra in extras for below in extras_of[extra]]
            continue
        installed = metadata.distribution(name)
        found[name] = installed.version
        for text in installed.requires or []:
            below = Requirement(text)
            contexts = [{"extra": extra} for extra in extras] or [{"extra": ""}]
            if below.marker is None or any(below.marker.evaluate(context) for context in contexts):
                waiting.append(below)
    return found


def project_extras() -> dict[str, list[Requirement]]:
    content = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    return {extra: [Requirement(text) for text in texts] for extra, texts in content["project"]["optional-dependencies"].items()}


def write(name: str, pins: dict[str, str], includes: tuple[str, ...] = ()) -> None:
    lines = ["# Written by requirements/pin.py.", *(f"-r {include}.txt" for include in includes)]
    lines += [f"{package}=={version}" for package, version in sorted(pins.items())]
    (HERE / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if any(re.search(r"://", line) for line in lines):
        raise SystemExit(f"requirements/{name}.txt would name an address: install that package by its version")


def main() -> None:
    extras = project_extras()
    server = closure(extras["server"], extras)
    operator = closure(extras["operator"] + extras["gateway"] + extras["tracing"], extras)
    local = closure(extras["local"], extras)
    write("server", server)
    write("operator", operator)
    below = server.keys() | operator.keys()
    write("local", {name: version for name, version in local.items() if name not in below}, ("server", "operator"))
    demo = closure([Requirement(name) for name in TOOLS["demo"]], extras)
    known = local.keys() | below
    write("demo", {name: version for name, version in demo.items() if name not in known}, ("local",))
    test = closure([Requirement(name) for name in TOOLS["test"]], extras)
    write("test", {name: version for name, version in test.items() if name not in known | demo.keys()}, ("demo",))
    write("lint", closure([Requirement(name) for name in TOOLS["lint"]], extras))


if __name__ == "__main__":
    main()
