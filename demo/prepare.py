"""Model files and manifests of the tour: the files from pinned Python packages, the manifests with the paths filled in."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support import models

HOME = Path(__file__).parent
WORK = HOME.parent / "run"
"""Manifests (`run/models`) and the state of the instance (`run/state`); ignored by git."""

MAKERS: Mapping[str, tuple[str, Callable[[], Path]]] = {
    "SMOLLM2": ("SmolLM2-135M-Instruct (93 MB)", models.smollm2),
    "GEMMA": ("Gemma 3 270M (240 MB)", models.gemma),
    "MINILM": ("all-MiniLM-L6-v2 (80 MB, converted to GGUF)", models.minilm),
}


def model_files(tell: Callable[[str], None]) -> dict[str, str]:
    """The sources of the three models; downloads what is not in the cache."""
    sources = {}
    for name, (label, make) in MAKERS.items():
        tell(label)
        sources[name] = f"file://{make()}"
    return sources


def manifests(sources: Mapping[str, str], *, keep: bool = False) -> Path:
    """The folder with the manifests. `keep`: leave files that are there as they are, for whoever has edited them."""
    folder = WORK / "models"
    folder.mkdir(parents=True, exist_ok=True)
    if not keep:
        for former in folder.glob("*.yaml"):
            former.unlink()
    for template in sorted((HOME / "manifests").glob("*.yaml")):
        target = folder / template.name
        if not (keep and target.exists()):
            target.write_text(string.Template(template.read_text()).substitute(sources))
    return folder
