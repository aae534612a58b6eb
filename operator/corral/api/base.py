"""The base of every part of a custom resource: how an object is read, checked and written.

Reading follows the API server: a null is an absent field, defaults are filled in, rules are judged after the form. Unknown fields are ignored (a
newer CRD may have more of them) unless the caller asks for `strict`, as kubectl does.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from corral.api.errors import RULES_BROKEN, Cause, InvalidObjectError, causes_of
from corral.api.types import Rule, Time

GROUP = "corral.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

MESSAGE_LIMIT = 4096
SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"

Text = Annotated[str, Field(max_length=1024)]
Name = Annotated[str, Field(max_length=253)]
ObjectName = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
OptionalObjectName = Annotated[str, Field(max_length=253, pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")]
LabelValue = Annotated[str, Field(max_length=63, pattern="^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
Labels = Annotated[dict[str, LabelValue], Field(max_length=64)]


class Part(BaseModel):
    """Any object inside a custom resource."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
    RULES: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken = [rule.message for rule in self.RULES if not rule.holds(self)]
        if broken:
            raise PydanticCustomError(RULES_BROKEN, "{messages}", {"messages": broken})
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        told = handler(schema)
        own = handler.resolve_ref_schema(told)
        if cls.RULES:
            own["x-kubernetes-validations"] = [rule.as_schema() for rule in cls.RULES]
        # Defaults as users write them (`30s`), not as pydantic encodes them.
        for name, value in cls.model_construct().dump().items():
            own["properties"][name]["default"] = value
        return told

    def dump(self) -> dict[str, Any]:
        """As JSON for the API: camelCase, without what is not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class OwnerReference(Part):
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False


class ObjectMeta(Part):
    """The metadata that Corral reads."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    owner_references: list[OwnerReference] = Field(default_factory=list)


class Condition(Part):
    """A condition in Kubernetes' standard form."""

    type: Annotated[str, Field(max_length=316)]
    """Which aspect of the object this tells about."""
    status: Annotated[str, Field(json_schema_extra={"enum": ["True", "False", "Unknown"]}, max_length=16)]
    """True, False or Unknown."""
    observed_generation: int | None = None
    """The generation of the spec that was judged."""
    last_transition_time: Time
    """When `status` last changed."""
    reason: Annotated[str, Field(max_length=1024, min_length=1)]
    """One word for programs; the reasons are listed in the documentation."""
    message: Annotated[str, Field(max_length=MESSAGE_LIMIT)] = ""
    """A sentence for people."""

    @field_validator("message", mode="before")
    @classmethod
    def _within_bounds(cls, value: Any) -> Any:
        return bounded(value) if isinstance(value, str) else value

    @field_validator("last_transition_time")
    @classmethod
    def _whole_seconds(cls, value: datetime) -> datetime:
        return value.replace(microsecond=0)


def bounded(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """A text that the schema's bound lets through; what is cut off is marked."""
    return text if len(text.encode()) <= limit else text.encode()[: limit - 4].decode(errors="ignore") + " …"


class Resource(Part):
    """A whole custom resource."""

    KIND: ClassVar[str]
    PLURAL: ClassVar[str]
    NAMESPACED: ClassVar[bool] = True
    SHORT_NAME: ClassVar[str]

    metadata: ObjectMeta = ObjectMeta()

    @property
    def key(self) -> str:
        """`namespace/name`, or the name alone of what has no namespace."""
        return f"{self.metadata.namespace}/{self.metadata.name}" if self.metadata.namespace else self.metadata.name

    @classmethod
    def parse(cls, obj: Mapping[str, Any], *, strict: bool = False) -> Self:
        """Read an object as the API server would admit it; raises `InvalidObjectError`.

        `strict` also refuses fields that do not exist, as kubectl does.
        """
        metadata = obj.get("metadata") or {}
        name = str(metadata.get("name") or "" if isinstance(metadata, Mapping) else "")
        unknown = [Cause("", f'strict decoding error: unknown field "{path}"') for path in unknown_fields(cls, obj)] if strict else []
        if unknown:
            raise InvalidObjectError(cls.KIND, name, unknown)
        if strict and not re.fullmatch(SUBDOMAIN, name):
            raise InvalidObjectError(cls.KIND, name, [_bad_name(name)])
        try:
            return cls.model_validate({key: value for key, value in obj.items() if key in {"metadata", "spec", "status"}})
        except ValidationError as error:
            raise InvalidObjectError(cls.KIND, name, causes_of(error)) from None


def _bad_name(name: str) -> Cause:
    if not name:
        return Cause("metadata.name", "Required value: name or generateName is required")
    return Cause(
        "metadata.name",
        f"Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
        f"and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{SUBDOMAIN}')",
    )


def unknown_fields(model: type[BaseModel], value: Any, path: str = "") -> Iterator[str]:
    """The fields of `value` that the model does not have, in the order they stand."""
    if not isinstance(value, Mapping):
        return
    known = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    for key, item in value.items():
        here = f"{path}.{key}" if path else str(key)
        if not path and key in {"apiVersion", "kind", "metadata", "status"}:
            continue
        if key not in known:
            yield here
            continue
        part = part_of(known[key])
        if part is None:
            continue
        if isinstance(item, list):
            for index, entry in enumerate(item):
                yield from unknown_fields(part, entry, f"{here}[{index}]")
        else:
            yield from unknown_fields(part, item, here)


def part_of(annotation: Any) -> type[Part] | None:
    """The model inside `X`, `X | None`, `list[X]` or `Annotated` of these."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = part_of(inner)
        if found is not None:
            return found
    return None
