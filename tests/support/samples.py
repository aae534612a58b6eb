"""The sample manifests in `crds/samples`: objects that are right, and objects that are wrong with the sentence that says so."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "crds" / "samples"


@dataclass(frozen=True)
class Sample:
    name: str
    obj: dict[str, Any]
    messages: tuple[str, ...]
    """What the API server says, word by word."""
    local: tuple[str, ...]
    """What `corral up` says: the same, unless the API server stutters."""


def _header(text: str, word: str) -> tuple[str, ...]:
    start = f"# {word}: "
    return tuple(line.removeprefix(start) for line in text.splitlines() if line.startswith(start))


def samples(kind: str) -> list[Sample]:
    found = []
    for file in sorted((SAMPLES / kind).glob("*.yaml")):
        text = file.read_text()
        messages = _header(text, "message")
        local = _header(text, "local") or tuple(message.removeprefix("<nil>: ") for message in messages)
        found.append(Sample(file.stem, yaml.safe_load(text), messages, local))
    return found
