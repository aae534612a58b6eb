"""From the pydantic models to CustomResourceDefinitions: structural schemas with bounds, defaults, list types and rules.

The API server's demands are kept here: every field has a type and a description, every list, map and string a bound (the cost of CEL is
estimated from them), and a parent's default is spelled out in full, because nested defaults do not apply when the parent is absent.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from corral.api.base import GROUP, VERSION, Resource
from corral.api.gatewayreport import GatewayReport
from corral.api.modeldeployment import ModelDeployment
from corral.api.modelpool import ModelPool

Json = dict[str, Any]

MAX_ITEMS = 1024
MAX_LENGTH = 1024
MAX_PROPERTIES = 64
INT32 = 2**31 - 1

KEPT = (
    "type", "description", "format", "default", "enum", "pattern", "minimum", "maximum",
    "minLength", "maxLength", "minItems", "maxItems", "maxProperties",
    "x-kubernetes-int-or-string", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations",
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    name: str
    path: str
    type: str = "string"
    description: str = ""
    wide: bool = False

    def as_json(self) -> Json:
        told: Json = {"name": self.name, "type": self.type, "jsonPath": self.path, "description": self.description}
        return told | {"priority": 1} if self.wide else told


def _condition(kind: str, part: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{part}'


@dataclass(frozen=True)
class Definition:
    """One kind, and what a CRD says beside the schema."""

    model: type[Resource]
    columns: tuple[Column, ...]
    status: bool = True
    scale: Mapping[str, str] = field(default_factory=dict)
    selectable: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return f"{GROUP}_{self.model.PLURAL}.yaml"


AGE = Column("Age", ".metadata.creationTimestamp", "date", "How long it exists")

DEFINITIONS = (
    Definition(
        ModelDeployment,
        (
            Column("Ready", _condition("Ready", "status"), description="Whether a request would be answered"),
            Column("State", _condition("Loaded", "reason"), description="Where the model is, or why it is not loaded"),
            Column("Replicas", ".status.replicas", "integer", "Server pods"),
            Column("Loaded", ".status.loadedReplicas", "integer", "Replicas that answer"),
            Column("Node", ".status.placements[0].node", description="Where the first replica is"),
            Column("Memory", ".status.memory.required", description="What one replica needs"),
            Column("LastUsed", ".status.lastUsed", "date", "When a request was last in flight"),
            AGE,
            Column("Pool", ".spec.pool", description="The ModelPool", wide=True),
            Column("Source", ".spec.model.source", description="Where the file comes from", wide=True),
            Column("Message", _condition("Loaded", "message"), description="Why, with the arithmetic", wide=True),
        ),
        scale={
            "specReplicasPath": ".spec.scaling.minReplicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
        selectable=(".spec.pool",),
    ),
    Definition(
        ModelPool,
        (
            Column("Ready", _condition("Ready", "status"), description="Whether models can be placed"),
            Column("Nodes", ".status.nodes", "integer", "Nodes that have a device"),
            Column("Devices", ".status.deviceCount", "integer", "Devices"),
            Column("Capacity", ".status.capacity", description="Bytes of all devices"),
            Column("Committed", ".status.committed", description="Bytes that are given to models"),
            Column("Free", ".status.free", description="Bytes that can still be given"),
            AGE,
            Column("From", ".spec.devices.from", description="Where devices are learned from", wide=True),
        ),
    ),
    Definition(
        GatewayReport,
        (Column("Sequence", ".spec.sequence", "integer", "Grows by one with every write"), AGE),
        status=False,
    ),
)


def schema_of(model: type[Resource]) -> Json:
    """The structural schema of one kind."""
    told = model.model_json_schema(mode="validation", by_alias=True)
    properties = {name: _structural(prop, told.get("$defs", {})) for name, prop in told["properties"].items() if name != "metadata"}
    for name, prop in properties.items():
        _fill_defaults(prop, keep=name != "status")
    if "status" in properties:
        properties["status"].pop("default", None)
    return {
        "type": "object",
        "description": _text(told["description"]),
        "properties": {
            "apiVersion": {"type": "string", "description": f"`{GROUP}/{VERSION}`."},
            "kind": {"type": "string", "description": f"`{model.KIND}`."},
            "metadata": {"type": "object"},
            **properties,
        },
        **({"required": told["required"]} if told.get("required") else {}),
        **({"x-kubernetes-validations": told["x-kubernetes-validations"]} if "x-kubernetes-validations" in told else {}),
    }


def crd(definition: Definition) -> Json:
    model = definition.model
    version: Json = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [column.as_json() for column in definition.columns],
        "schema": {"openAPIV3Schema": schema_of(model)},
    }
    if definition.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in definition.selectable]
    if definition.status:
        version["subresources"] = {"status": {}, **({"scale": dict(definition.scale)} if definition.scale else {})}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{model.PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": model.KIND,
                "listKind": f"{model.KIND}List",
                "plural": model.PLURAL,
                "singular": model.KIND.lower(),
                "shortNames": [model.SHORT_NAME],
                "categories": ["corral"],
            },
            "scope": "Namespaced" if model.NAMESPACED else "Cluster",
            "versions": [version],
        },
    }


def _text(description: str) -> str:
    return " ".join(description.split())


def _structural(told: Json, definitions: Json) -> Json:
    """One node of pydantic's JSON schema, with references inlined, in the form that the API server takes."""
    told = dict(told)
    if "$ref" in told:
        base = dict(definitions[told.pop("$ref").rsplit("/", 1)[-1]])
        told = base | told
    if "anyOf" in told and not told.get("x-kubernetes-int-or-string"):
        inner = [option for option in told.pop("anyOf") if option.get("type") != "null"]
        if len(inner) != 1:
            raise ValueError(f"a field has exactly one type, not {inner}")
        return _structural(inner[0] | {key: value for key, value in told.items() if key != "default" or value is not None}, definitions)
    node: Json = {key: copy.deepcopy(told[key]) for key in KEPT if key in told}
    if told.get("default", 0) is None:
        node.pop("default")
    if "description" in node:
        node["description"] = _text(node["description"])
    if node.get("x-kubernetes-int-or-string"):
        node["anyOf"] = told["anyOf"]
    if node.get("type") == "integer":
        node["format"] = "int32" if node.get("maximum", 2**63) <= INT32 else "int64"
    if node.get("type") == "string" and "enum" not in node:
        node.setdefault("maxLength", MAX_LENGTH)
    if node.get("type") == "array":
        node["items"] = _structural(told["items"], definitions)
        node.setdefault("maxItems", MAX_ITEMS)
        node.setdefault("x-kubernetes-list-type", "atomic")
    if node.get("type") == "object" and "properties" in told:
        node["properties"] = {name: _structural(prop, definitions) for name, prop in told["properties"].items()}
        if told.get("required"):
            node["required"] = told["required"]
    elif node.get("type") == "object":
        node["additionalProperties"] = _structural(told["additionalProperties"], definitions)
        node.setdefault("maxProperties", MAX_PROPERTIES)
        if "maxItems" in node:
            raise ValueError(f"a map is bounded by maxProperties: {node}")
    return node


def _fill_defaults(node: Json, *, keep: bool) -> None:
    """Spell every default out: what pydantic gave for a part is replaced by what its own fields say. A status has none."""
    for child in [*node.get("properties", {}).values(), *([node["items"]] if "items" in node else [])]:
        _fill_defaults(child, keep=keep)
    if "default" not in node:
        return
    if not keep or node["default"] in ("", {}, []):
        del node["default"]
    elif "properties" in node:
        full = {name: child["default"] for name, child in node["properties"].items() if "default" in child}
        if full:
            node["default"] = full
        else:
            del node["default"]
