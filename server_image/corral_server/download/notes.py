"""Notes beside a file of the cache: NAME.json, always whole."""

import json
import os
from pathlib import Path
from typing import Any


def read_notes(file: Path) -> dict[str, Any]:
    try:
        notes = json.loads(file.with_name(file.name + ".json").read_text())
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def write_notes(file: Path, notes: dict[str, Any]) -> None:
    target = file.with_name(file.name + ".json")
    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    temporary.write_text(json.dumps(notes))
    temporary.replace(target)
