"""Manifests of a folder, read as the API server would admit them, with errors that name file, line, field, value and what would be right.

Pure but for reading the files it is given. It must never keep anything: what to do about a bad file is `folder`'s.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from corral.api.base import API_VERSION
from corral.api.errors import InvalidObjectError
from corral.api.modeldeployment import ModelDeployment
from corral.api.modelpool import ModelPool

SUFFIXES = (".yaml", ".yml", ".json")
KINDS: Mapping[str, type[ModelDeployment | ModelPool]] = {"ModelDeployment": ModelDeployment, "ModelPool": ModelPool}
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,251}[a-z0-9])?")
NAMESPACE = "default"
"""Of objects that name none, as with kubectl."""


@dataclass(frozen=True, slots=True)
class Key:
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Manifest:
    key: Key
    obj: Mapping[str, Any]
    file: Path


@dataclass(frozen=True, slots=True)
class FileContent:
    """What one file says: its manifests, or what is wrong with it (then no manifest of it counts), and what was passed over."""

    file: Path
    manifests: tuple[Manifest, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The manifest files that `paths` (folders, not their subfolders, or files) name, as `kubectl apply -f` takes them."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found.extend(sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES and not entry.name.startswith(".")))
        elif path.exists():
            found.append(path)
    return list(dict.fromkeys(found))


Reader = Callable[[Path, dict[str, Any]], Manifest]


def read_file(path: Path) -> FileContent:
    try:
        text = path.read_text()
        documents = [(node, document) for node, document in _documents(text) if document is not None]
    except OSError as error:
        return FileContent(path, problems=(f"{path}: {error.strerror}",))
    except UnicodeDecodeError as error:
        return FileContent(path, problems=(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}",))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return FileContent(path, problems=(f"{path}:{line}: is not YAML: {error.problem or error}",))
    except yaml.YAMLError as error:
        return FileContent(path, problems=(f"{path}: is not YAML: {error}",))
    manifests: list[Manifest] = []
    problems: list[str] = []
    notes: list[str] = []
    for node, document in documents:
        for part_node, part in _parts(node, document):
            where = f"{path}:{part_node.start_mark.line + 1}"
            if not isinstance(part, dict) or not isinstance(part.get("kind"), str):
                problems.append(f"{where}: this document has no kind; a manifest starts with apiVersion and kind")
                continue
            if part["kind"] == "Secret":
                manifests += _take(_secret, path, part_node, part, problems)
            elif part["kind"] not in KINDS or not str(part.get("apiVersion", "")).startswith("corral.dev/"):
                notes.append(f"{where}: {part['kind']} is passed over: only ModelDeployment, ModelPool and Secret mean anything on one machine")
            else:
                manifests += _take(_resource, path, part_node, part, problems)
    return FileContent(path, () if problems else tuple(manifests), tuple(problems), tuple(notes))


def _documents(text: str) -> Iterator[tuple[yaml.Node, Any]]:
    """Each document with its syntax tree, which knows the lines."""
    loader = yaml.SafeLoader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                yield node, loader.construct_document(node)
    finally:
        loader.dispose()


def _parts(node: yaml.Node, document: Any) -> Iterator[tuple[yaml.Node, Any]]:
    """The document, or the items of a List."""
    if not (isinstance(document, dict) and document.get("kind") == "List" and isinstance(document.get("items"), list)):
        yield node, document
        return
    items = _child(node, "items") or node
    nodes = items.value if isinstance(items, yaml.SequenceNode) else []
    yield from zip(nodes, document["items"], strict=True)


def _take(reader: Reader, path: Path, node: yaml.Node, part: dict[str, Any], problems: list[str]) -> list[Manifest]:
    try:
        return [reader(path, part)]
    except InvalidObjectError as error:
        for cause in error.causes:
            line = _line_of(node, cause.field or _quoted_field(cause.message))
            problems.append(f"{path}:{line}: {part['kind']} {error.name or '(without a name)'}: {cause}")
    except ValueError as error:
        problems.append(f"{path}:{node.start_mark.line + 1}: {error}")
    return []


def _named(part: Mapping[str, Any], namespaced: bool) -> Key:
    metadata = part.get("metadata")
    if not isinstance(metadata, dict):
        metadata = {}
    name, namespace = metadata.get("name"), metadata.get("namespace") or NAMESPACE
    for label, value in (("metadata.name", name), *((("metadata.namespace", namespace),) if namespaced else ())):
        if not isinstance(value, str) or not NAME.fullmatch(value):
            shown = "missing" if value is None else repr(value)
            raise ValueError(f"{part['kind']}: {label} is {shown}; it has to be lower-case letters, digits and '-', such as smollm2")
    return Key(part["kind"], namespace if namespaced else "", str(name))


def _resource(path: Path, part: dict[str, Any]) -> Manifest:
    kind = KINDS[part["kind"]]
    key = _named(part, kind.NAMESPACED)
    if part["apiVersion"] != API_VERSION:
        raise ValueError(f"{key}: apiVersion is {part['apiVersion']!r}; this version of Corral reads {API_VERSION}")
    kind.parse(part, strict=True)
    metadata = {**part["metadata"], "name": key.name, **({"namespace": key.namespace} if key.namespace else {})}
    return Manifest(key, {"apiVersion": API_VERSION, "kind": key.kind, "metadata": metadata, "spec": part.get("spec") or {}}, path)


def _secret(path: Path, part: dict[str, Any]) -> Manifest:
    key = _named(part, namespaced=True)
    values: dict[str, str] = {}
    for name, value in (part.get("data") or {}).items():
        try:
            values[str(name)] = base64.b64decode(str(value), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError(f"{key}: data.{name} is not base64 of UTF-8 text; put plain text into stringData") from None
    values.update({str(name): str(value) for name, value in (part.get("stringData") or {}).items()})
    return Manifest(key, {"kind": "Secret", "metadata": {"name": key.name, "namespace": key.namespace}, "values": values}, path)


def _quoted_field(message: str) -> str:
    found = re.search(r'unknown field "([^"]+)"', message)
    return found[1] if found else ""


def _line_of(node: yaml.Node, path: str) -> int:
    """The line of a field such as `spec.aliases[1]`, or of the nearest part of it that is there."""
    line = node.start_mark.line
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(node, yaml.SequenceNode) and step.isdigit() and int(step) < len(node.value):
            node = node.value[int(step)]
            line = node.start_mark.line
            continue
        if not isinstance(node, yaml.MappingNode):
            break
        pair = next(((key, value) for key, value in node.value if key.value == step), None)
        if pair is None:
            break
        line, node = pair[0].start_mark.line, pair[1]
    return int(line) + 1


def _child(node: yaml.Node, name: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for key, value in node.value if key.value == name), None)
