"""GatewayReport: what one gateway replica tells the operator. Machine to machine; nobody writes it by hand."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from corral.api.base import Part, Resource
from corral.api.types import Time

Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


class ReportedWish(Part):
    """An administrator's wish, through llama.cpp's router API."""

    action: Literal["Load", "Unload"]
    """What is wished for."""
    id: Annotated[int, Field(ge=0)]
    """Its number; the operator repeats it in the ModelDeployment's status."""


class ReportedModel(Part):
    """One model that waits, is in flight, or changed."""

    name: Annotated[str, Field(max_length=320, min_length=3, pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
    """The ModelDeployment, as NAMESPACE/NAME."""
    waiting: Count = 0
    """Requests that wait for it in this gateway."""
    oldest_wait_seconds: Count = 0
    """For how long the oldest of them waits, in seconds."""
    in_flight: Count = 0
    """Requests that this gateway has sent to its pods and that have not ended."""
    returning_seconds: Count = 0
    """For how many more seconds the place of clients is kept whose wait was over: twice the Retry-After that they were given."""
    last_used: Time | None = None
    """When this gateway last had one in flight."""
    wish: ReportedWish | None = None
    """An administrator's wish."""


class GatewayReportSpec(Part):
    """What the gateway sees."""

    sequence: Annotated[int, Field(ge=0)]
    """Grows by one with every write; a smaller one is stale."""
    models: Annotated[list[ReportedModel], Field(max_length=10_000)] = Field(default_factory=list)
    """The models that wait, are in flight, or changed."""


class GatewayReport(Resource):
    """What one gateway replica tells the operator: who waits, and what is in flight. Owned by the gateway's pod."""

    KIND: ClassVar[str] = "GatewayReport"
    PLURAL: ClassVar[str] = "gatewayreports"
    SHORT_NAME: ClassVar[str] = "gwr"

    spec: GatewayReportSpec
    """What the gateway sees."""
