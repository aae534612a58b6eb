"""The watched folder: what its files say goes into the registry, live. A bad file changes nothing: its former objects stay until it is right again.

It must never write to the folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from watchfiles import awatch

from corral.api.base import API_VERSION
from corral.local.manifests import FileContent, Key, Manifest, files_of, read_file
from corral.local.registry import Registry

Say = Callable[[str, str], None]
"""Level (`error` or `note`) and text."""

ORDER = {"Secret": 0, "ModelPool": 1, "ModelDeployment": 2}


BUILT_IN = Path("(built in)")
DEFAULT_POOL = Manifest(
    Key("ModelPool", "", "default"),
    {"apiVersion": API_VERSION, "kind": "ModelPool", "metadata": {"name": "default"}, "spec": {}},
    BUILT_IN,
)
"""Where the files have no pool there is this one, as the chart makes it on a cluster."""


RESCAN_MS = 5000
"""The files are read again so often without any notice: for what changes before the first watch, and for file systems that give none."""


class Folder:
    def __init__(self, paths: Sequence[Path], registry: Registry, say: Say, refuse: Callable[[Key, str], None] = lambda _key, _why: None) -> None:
        """`refuse`: told of each object whose last good spec stays in force, and why."""
        self._refuse = refuse
        self._paths = tuple(path.absolute() for path in paths)
        self._registry = registry
        self._say = say
        self._good: dict[Path, tuple[Manifest, ...]] = {}
        self._told: set[str] = set()
        self._applied: set[Key] = set()

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong in the files now."""
        return tuple(sorted(text for text in self._told if text.startswith("error ")))

    def scan(self) -> None:
        """Read all files and bring the registry in line."""
        contents = [read_file(path) for path in files_of(self._paths)]
        told: set[str] = set()
        for content in contents:
            if not content.problems:
                self._good[content.file] = content.manifests
            self._tell(content, told)
        present = {content.file for content in contents}
        self._good = {file: manifests for file, manifests in self._good.items() if file in present}
        wanted = self._without_doubles(told)
        self._told = told
        if not any(key.kind == "ModelPool" for key in wanted):
            wanted[DEFAULT_POOL.key] = DEFAULT_POOL
        for key in self._applied - wanted.keys():
            self._registry.remove(key)
        for manifest in sorted(wanted.values(), key=lambda found: ORDER[found.key.kind]):
            self._registry.apply(manifest)
        self._applied = set(wanted)

    def _tell(self, content: FileContent, told: set[str]) -> None:
        for problem in content.problems:
            former = self._good.get(content.file, ())
            kept = "; what it said before stays in force" if content.file in self._good else ""
            if self._once("error", problem + kept, told):
                for manifest in former:
                    self._refuse(manifest.key, f"{problem}; the last good spec stays in force")
        for note in content.notes:
            self._once("note", note, told)

    def _without_doubles(self, told: set[str]) -> dict[Key, Manifest]:
        wanted: dict[Key, Manifest] = {}
        for file in sorted(self._good):
            for manifest in self._good[file]:
                first = wanted.setdefault(manifest.key, manifest)
                if first is not manifest:
                    self._once("error", f"{file}: {manifest.key} is in {first.file} already; that one is used. Give one of them another name", told)
        return wanted

    def _once(self, level: str, text: str, told: set[str]) -> bool:
        """Say each thing when it comes up, and again only after it was gone. Whether it was said."""
        mark = f"{level} {text}"
        new = mark not in self._told and mark not in told
        if new:
            self._say(level, text)
        told.add(mark)
        return new

    async def watch(self, stop: asyncio.Event) -> None:
        """Follow the files until `stop`; `scan` has been called once before."""
        watched = {path if path.is_dir() else path.parent for path in self._paths}
        changes = awatch(*watched, stop_event=stop, recursive=False, debounce=200, step=50, rust_timeout=RESCAN_MS, yield_on_timeout=True)
        async for _ in changes:
            self.scan()
