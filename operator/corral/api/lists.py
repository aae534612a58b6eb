"""Lists in the API: sets and lists keyed by a field, which the API server keeps free of duplicates, and so do we."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from corral.api.errors import DUPLICATE


@dataclass(frozen=True)
class Unique:
    """A list without duplicates: of whole items (a set), or of items that differ in the fields named by `keys` (a map)."""

    keys: tuple[str, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        told = handler(schema)
        told["x-kubernetes-list-type"] = "map" if self.keys else "set"
        if self.keys:
            told["x-kubernetes-list-map-keys"] = list(self.keys)
        return told

    def _check(self, value: Any) -> Any:
        seen: list[Any] = []
        for index, item in enumerate(value if isinstance(value, list) else []):
            found = {key: item.get(key) for key in self.keys} if self.keys and isinstance(item, Mapping) else item
            if found in seen:
                raise PydanticCustomError(DUPLICATE, "duplicate", {"index": index, "value": found})
            seen.append(found)
        return value
