"""The reasons that the server gives for a refusal or a failure, and the exception that carries one.

Each is a word of the contract: the same spelling reaches status, conditions, events and HTTP errors.
"""

import json
from dataclasses import dataclass

SOURCE_UNREACHABLE = "SourceUnreachable"
SOURCE_NOT_FOUND = "SourceNotFound"
SOURCE_UNAUTHORIZED = "SourceUnauthorized"
SOURCE_REFUSED = "SourceRefused"
UNSUPPORTED_SOURCE = "UnsupportedSource"
NOT_A_GGUF = "NotAGGUF"
UNSUPPORTED_MODEL = "UnsupportedModel"
CHECKSUM_MISMATCH = "ChecksumMismatch"
NO_SPACE = "NoSpace"
OUT_OF_MEMORY = "OutOfMemory"
LOAD_FAILED = "LoadFailed"
LOAD_TIMEOUT = "LoadTimeout"
ENGINE_CRASHED = "EngineCrashed"
INVALID_ENGINE_SETTINGS = "InvalidEngineSettings"

RETRY = frozenset({SOURCE_UNREACHABLE, NO_SPACE, LOAD_FAILED, LOAD_TIMEOUT, ENGINE_CRASHED})
"""Reasons that another attempt may cure without anybody changing anything."""


@dataclass
class Failure(Exception):  # noqa: N818  it is a result that travels as an exception, not a bug
    """Something that ends a download, an estimate or a load, with its reason."""

    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    @property
    def retry(self) -> bool:
        return self.reason in RETRY


def wrong_setting(path: str, value: object, right: str) -> Failure:
    """A setting of `spec.engine` that cannot be: what it is called, what it is, what it has to be."""
    return Failure(INVALID_ENGINE_SETTINGS, f"{path} is {json.dumps(value)}; it has to be {right}")
