"""What the environment tells the server process: addresses, folders, keys, limits.

Read once at the start; nothing else reads the environment.
"""

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    pod_uid: str = ""
    public_keys: tuple[str, ...] = ()
    spec: str = ""
    cache_dir: Path = Path("/cache")
    cache_limit: int = 0
    """Bytes that model files may take there; 0: what the disk has."""
    cache_shared: bool = False
    """Whether others on this node use the same cache: then the status tells what is in it."""
    secret_dir: Path | None = None
    claims_dir: Path = Path("/claims")
    hub_endpoint: str = ""
    allow_local_sources: bool = False
    host: str = "0.0.0.0"
    inference_port: int = 8080
    control_port: int = 8081
    ports_file: Path | None = None
    grace_seconds: float = 30.0
    load_timeout: float = 120.0
    quiet_seconds: float = 15.0
    """After so long without an event a stream gets a comment: proxies cut what says nothing, often after 60 s, and a long prompt may take longer."""
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)


def read_settings(env: Mapping[str, str] | None = None) -> Settings:
    env = os.environ if env is None else env

    def number(name: str, default: float) -> float:
        raw = env.get(name, "")
        if not raw:
            return default
        try:
            return float(raw)
        except ValueError:
            raise ValueError(f"{name} is {raw!r}; it has to be a number") from None

    def path(name: str) -> Path | None:
        return Path(env[name]) if env.get(name) else None

    return Settings(
        pod_uid=env.get("CORRAL_POD_UID", ""),
        public_keys=tuple(k.strip() for k in env.get("CORRAL_PUBLIC_KEYS", "").split(",") if k.strip()),
        spec=_spec(env),
        cache_dir=path("CORRAL_CACHE_DIR") or Settings.cache_dir,
        cache_limit=int(number("CORRAL_CACHE_LIMIT", 0)),
        cache_shared=env.get("CORRAL_CACHE_SHARED", "") in {"1", "true"},
        secret_dir=path("CORRAL_SECRET_DIR"),
        claims_dir=path("CORRAL_CLAIMS_DIR") or Settings.claims_dir,
        hub_endpoint=env.get("CORRAL_HF_ENDPOINT", ""),
        allow_local_sources=env.get("CORRAL_ALLOW_LOCAL_SOURCES", "") in {"1", "true"},
        host=env.get("CORRAL_HOST") or Settings.host,
        inference_port=int(number("CORRAL_INFERENCE_PORT", Settings.inference_port)),
        control_port=int(number("CORRAL_CONTROL_PORT", Settings.control_port)),
        ports_file=path("CORRAL_PORTS_FILE"),
        grace_seconds=number("CORRAL_GRACE_SECONDS", Settings.grace_seconds),
        load_timeout=number("CORRAL_LOAD_TIMEOUT_SECONDS", Settings.load_timeout),
        quiet_seconds=number("CORRAL_STREAM_QUIET_SECONDS", Settings.quiet_seconds),
        environ=dict(env),
    )


def _spec(env: Mapping[str, str]) -> str:
    """`CORRAL_SPEC`, `CORRAL_SPEC_2` and so on, which are one text: a variable has less than 128 KiB."""
    names = itertools.takewhile(env.__contains__, itertools.chain(["CORRAL_SPEC"], (f"CORRAL_SPEC_{number}" for number in itertools.count(2))))
    return "".join(env[name] for name in names)
