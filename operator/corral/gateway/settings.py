"""What an installation may set about its gateway. Values only; times are seconds, sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    host: str = "0.0.0.0"
    port: int = 8080
    """Port of the data path; 0: any free one."""
    admin_host: str = "0.0.0.0"
    admin_port: int = 8081
    """Port of /healthz, /readyz and /metrics; 0: any free one."""

    max_header: int = 64 * KIB
    header_timeout: float = 30.0
    """How long a client may take to send a request's headers."""
    body_timeout: float = 60.0
    """How long a client may pause inside a request's body."""
    max_body: int = 64 * MIB
    """The largest JSON body."""
    max_upload: int = 512 * MIB
    """The largest multipart body (it goes to disk)."""
    bodies_max: int = 512 * MIB
    """Bytes of bodies in memory at once."""
    client_stall: float = 300.0
    """How long a client may refuse to read its answer."""
    keep_alive: float = 75.0
    """How long an idle client connection is kept: longer than the proxies in front keep theirs."""

    held_in_memory: int = 1_000_000
    """Bytes of held requests that stay in memory; the rest goes to disk."""
    held_bytes_max: int = 1024 * MIB
    """Bytes of held requests in memory and on disk together."""
    spool_dir: Path | None = None
    """Where bodies go that are not kept in memory; None: the system's temporary folder."""

    connect_timeout: float = 5.0
    first_byte_timeout: float = 3600.0
    """How long a pod may take for the first byte of its answer: a whole answer's time when it does not stream."""
    idle_timeout: float = 600.0
    """How long a pod may pause inside an answer."""
    pool_idle: float = 60.0
    """How long an idle connection to a pod is reused: shorter than the supervisor keeps it (75 s)."""

    settle: float = 0.0
    """A stopping gateway still accepts, its readiness false, until no request came for so long: until nobody routes to it any more."""
    grace: float = 30.0
    """How long a stopping gateway lets requests finish."""
