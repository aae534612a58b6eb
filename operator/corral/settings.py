"""What the environment says to the operator and to a gateway in the cluster. Read once, at the start, and by nobody else."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")


class SettingError(ValueError):
    """A variable that is missing or wrong; says which, what it is, and what would be right."""


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    namespace: str
    server_image: str
    server_pull_policy: str
    server_pull_secrets: tuple[str, ...]
    pod_name: str
    lease_name: str
    key_secret: str
    hf_endpoint: str
    allow_local_sources: bool
    grace_seconds: int
    log_level: str
    http_port: int
    identity: str
    """Who this process is in the Lease: new with every start, so that a restarted container is a rival of its former self."""


@dataclass(frozen=True, slots=True)
class GatewayProcessSettings:
    namespace: str
    pod_name: str
    pod_uid: str
    pod_ip: str
    key_secret: str
    key_file: str
    """A mounted key; empty: the Secret is read through the API."""
    keys_namespace: str
    """Where the Secrets of API keys are; empty: no keys are asked for."""
    grace_seconds: int
    settle_seconds: float
    log_level: str
    port: int
    admin_port: int


def operator_settings(env: Mapping[str, str] | None = None) -> OperatorSettings:
    read = _Reader(os.environ if env is None else env)
    pod_name = read.text("CORRAL_POD_NAME", socket.gethostname())
    return OperatorSettings(
        namespace=read.text("CORRAL_NAMESPACE"),
        server_image=read.text("CORRAL_SERVER_IMAGE"),
        server_pull_policy=read.one_of("CORRAL_SERVER_PULL_POLICY", PULL_POLICIES, "IfNotPresent"),
        server_pull_secrets=read.names("CORRAL_SERVER_PULL_SECRETS"),
        pod_name=pod_name,
        lease_name=read.text("CORRAL_LEASE_NAME", "corral-operator"),
        key_secret=read.text("CORRAL_KEY_SECRET", "corral-signing-key"),
        hf_endpoint=read.text("CORRAL_HF_ENDPOINT", ""),
        allow_local_sources=read.flag("CORRAL_ALLOW_LOCAL_SOURCES"),
        grace_seconds=read.number("CORRAL_GRACE_SECONDS", int, 30),
        log_level=read.one_of("CORRAL_LOG_LEVEL", LOG_LEVELS, "INFO"),
        http_port=read.number("CORRAL_HTTP_PORT", int, 8081),
        identity=f"{pod_name}_{secrets.token_hex(4)}",
    )


def gateway_settings(env: Mapping[str, str] | None = None) -> GatewayProcessSettings:
    read = _Reader(os.environ if env is None else env)
    return GatewayProcessSettings(
        namespace=read.text("CORRAL_NAMESPACE"),
        pod_name=read.text("CORRAL_POD_NAME", socket.gethostname()),
        pod_uid=read.text("CORRAL_POD_UID", ""),
        pod_ip=read.text("CORRAL_POD_IP", ""),
        key_secret=read.text("CORRAL_KEY_SECRET", "corral-signing-key"),
        key_file=read.text("CORRAL_KEY_FILE", ""),
        keys_namespace=read.text("CORRAL_KEYS_NAMESPACE", ""),
        grace_seconds=read.number("CORRAL_GRACE_SECONDS", int, 30),
        settle_seconds=read.number("CORRAL_SETTLE_SECONDS", float, 0.0),
        log_level=read.one_of("CORRAL_LOG_LEVEL", LOG_LEVELS, "INFO"),
        port=read.number("CORRAL_PORT", int, 8080),
        admin_port=read.number("CORRAL_ADMIN_PORT", int, 8081),
    )


class _Reader:
    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def text(self, name: str, default: str | None = None) -> str:
        found = self._env.get(name) or default
        if found is None:
            raise SettingError(f"{name} is not set; it has to be")
        return found

    def names(self, name: str) -> tuple[str, ...]:
        return tuple(item.strip() for item in self._env.get(name, "").split(",") if item.strip())

    def one_of(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        found = self.text(name, default)
        if found not in allowed:
            raise SettingError(f"{name} is {found!r}; it has to be one of {', '.join(allowed)}")
        return found

    def flag(self, name: str) -> bool:
        found = self._env.get(name, "").lower()
        if found not in {"", "0", "1", "false", "true"}:
            raise SettingError(f"{name} is {found!r}; it has to be 1 or 0")
        return found in {"1", "true"}

    def number(self, name: str, kind: Callable[[str], T], default: T) -> T:
        found = self._env.get(name)
        if not found:
            return default
        try:
            return kind(found)
        except ValueError:
            raise SettingError(f"{name} is {found!r}; it has to be a number") from None
