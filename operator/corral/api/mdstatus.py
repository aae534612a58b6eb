"""ModelDeployment's status: what the operator writes, and gateways, `kubectl` and the command line read.

Bounds are kept by cutting, never by refusing: a status that cannot be written helps nobody.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from corral.api.base import MESSAGE_LIMIT, Condition, Name, Part, bounded
from corral.api.lists import Unique
from corral.api.types import Duration, Mebibytes, RoundedBytes, Time

CANDIDATES = 8
REFUSED = 16

Message = Annotated[str, Field(max_length=MESSAGE_LIMIT), BeforeValidator(lambda text: bounded(text) if isinstance(text, str) else text)]
Count = Annotated[int, Field(ge=0)]
Id = Annotated[str, Field(max_length=253)]


class EstimatedMemory(Part):
    """What llama.cpp says that one replica needs, from the file's header alone."""

    weights: Mebibytes | None = None
    """Bytes of the weights."""
    kv_cache: Mebibytes | None = None
    """Bytes of the KV cache."""
    compute: Mebibytes | None = None
    """Bytes of the compute buffers."""
    overhead: Mebibytes | None = None
    """Bytes that the processes use beside these."""
    total: Mebibytes
    """Bytes in sum."""


class MeasuredMemory(Part):
    """What a loaded replica was seen to use."""

    weights: Mebibytes | None = None
    """Bytes of the weights."""
    kv_cache: Mebibytes | None = None
    """Bytes of the KV cache."""
    compute: Mebibytes | None = None
    """Bytes of the compute buffers."""
    residue: Mebibytes | None = None
    """Bytes that stay in use while it sleeps."""
    total: Mebibytes
    """Bytes in sum."""


class Memory(Part):
    """What one replica needs on its devices."""

    required: RoundedBytes | None = None
    """Bytes that one replica is counted with: the larger of estimated and measured. Rounded for people."""
    estimated: EstimatedMemory | None = None
    """What llama.cpp says, from the file's header alone."""
    measured: MeasuredMemory | None = None
    """What a loaded replica was seen to use."""


class Estimate(Part):
    """The estimate as the server image gave it; kept so that it is made once for each file and setting."""

    ok: bool
    """Whether the file can be served."""
    source: Annotated[str, Field(max_length=2048)] = ""
    """The source that it was made for."""
    settings: Annotated[str, Field(max_length=128)] = ""
    """A digest of the engine settings that it was made for."""
    at: Time | None = None
    """When it was made."""
    digest: Annotated[str, Field(max_length=256)] = ""
    """What identifies the file's content: its entity tag, or the header's SHA-256."""
    architecture: Annotated[str, Field(max_length=128)] = ""
    """The model's architecture as the file names it."""
    context_length: Count | None = None
    """Tokens that one request may have."""
    trained_context: Count | None = None
    """Tokens that the model was trained for."""
    layers: Count | None = None
    """Layers."""
    weights: Count | None = None
    """Bytes of the weights."""
    kv_cache: Count | None = None
    """Bytes of the KV cache."""
    compute: Count | None = None
    """Bytes of the compute buffers."""
    overhead: Count | None = None
    """Bytes that the processes use beside these."""
    total: Count | None = None
    """Bytes in sum."""
    file_bytes: Count | None = None
    """Bytes of the file."""
    pooling: Annotated[str, Field(max_length=32)] = ""
    """How the file says that embeddings are pooled; empty: it generates text."""
    chat: bool | None = None
    """Whether it has a chat template."""
    per_layer: Annotated[list[Annotated[list[Count], Field(max_length=8)]], Field(max_length=1024)] | None = None
    """From the first layer to the last: how many alike, bytes of weights and bytes of KV cache of each."""
    input: Count | None = None
    """Bytes of the tensors that stay on the host."""
    output: Count | None = None
    """Bytes of the tensors that go with the last device."""
    reason: Annotated[str, Field(max_length=128)] = ""
    """Why the file cannot be served."""
    message: Message = ""
    """Why, for people."""
    retry: bool | None = None
    """Whether trying again can help."""


class PlacedReplica(Part):
    """One replica and where it is."""

    replica: Name
    """The server pod's name."""
    node: Name = ""
    """The node's name."""
    devices: Annotated[list[Id], Field(max_length=64)] = Field(default_factory=list)
    """The devices that it may use."""
    state: Literal["Pending", "Downloading", "Sleeping", "Loading", "Loaded", "Draining", "Failed"]
    """What it does."""
    since: Time | None = None
    """Since when."""


class LastLoad(Part):
    """How long the last load took."""

    total: Duration
    """From the decision until the model could answer."""
    schedule: Duration | None = None
    """Until the pod ran; nothing when it slept on its node."""
    download: Duration | None = None
    """Until the file was there."""
    start: Duration | None = None
    """Until the engine's process ran."""
    load: Duration | None = None
    """Until the model was in memory."""
    first_token: Duration | None = None
    """Until a first token was computed."""


class RefusedVictim(Part):
    """A model that was looked at and may not be evicted."""

    model: Name
    """Its name."""
    reason: Annotated[str, Field(max_length=128)]
    """Why not."""
    until: Time | None = None
    """When this reason ends, where that is known."""


class Candidate(Part):
    """A node that was looked at, and why the model is not there."""

    node: Name
    """The node's name."""
    devices: Annotated[list[Id], Field(max_length=64)] = Field(default_factory=list)
    """The devices that were looked at."""
    capacity: RoundedBytes | None = None
    """Bytes that these devices have."""
    free: RoundedBytes | None = None
    """Bytes that are free on them, margin taken off."""
    margin: RoundedBytes | None = None
    """Bytes that are left free on each."""
    need: RoundedBytes | None = None
    """Bytes that the model needs there."""
    freeable: RoundedBytes | None = None
    """Bytes that evictions could free if every refusal ended."""
    refused: Annotated[list[RefusedVictim], Field(max_length=REFUSED), BeforeValidator(lambda found: _first(found, REFUSED))] = Field(
        default_factory=list
    )
    """The models that could give way there and may not."""


class NextStep(Part):
    """What is waited for."""

    at: Time | None = None
    """When it happens, where that is known."""
    what: Message
    """What it is."""


class Explanation(Part):
    """Why the model is not loaded, with the arithmetic."""

    reason: Annotated[str, Field(max_length=128)]
    """The reason of the `Loaded` condition, or of `Stalled`."""
    message: Message = ""
    """The same for people."""
    need: RoundedBytes | None = None
    """Bytes that one replica needs."""
    candidates: Annotated[list[Candidate], Field(max_length=CANDIDATES), BeforeValidator(lambda found: _first(found, CANDIDATES))] = Field(
        default_factory=list
    )
    """The nodes that were looked at, the likeliest first."""
    more: Count = 0
    """How many nodes are not listed."""
    next: NextStep | None = None
    """What is waited for."""


class BackOff(Part):
    """A node on which the model failed, and until when it is not tried there again."""

    node: Name
    """The node's name; empty: the model as a whole."""
    failures: Count
    """How often in a row."""
    until: Time
    """When it is tried again."""
    reason: Annotated[str, Field(max_length=128)] = ""
    """Why it failed."""
    message: Message = ""
    """Why, for people."""


class Wish(Part):
    """The last wish of an administrator that was taken note of."""

    id: int
    """Its number in the gateway's report."""
    action: Literal["Load", "Unload"]
    """What was wished for."""
    gateway: Name = ""
    """The gateway that reported it."""


class ModelDeploymentStatus(Part):
    """What is."""

    observed_generation: int | None = None
    """The generation of the spec that this status is about."""
    conditions: Annotated[list[Condition], Field(max_length=16), Unique(("type",))] = Field(default_factory=list)
    """`Ready`, `Reconciling`, `Stalled`, `Estimated`, `Placed` and `Loaded`."""
    replicas: Count | None = None
    """Server pods."""
    loaded_replicas: Count | None = None
    """Replicas that answer."""
    sleeping_replicas: Count | None = None
    """Replicas whose pod is there and whose device memory is given up."""
    selector: Annotated[str, Field(max_length=512)] | None = None
    """The label selector of the server pods, for `kubectl scale` and autoscalers."""
    memory: Memory | None = None
    """What one replica needs on its devices."""
    placements: Annotated[list[PlacedReplica], Field(max_length=1000)] | None = None
    """Where the replicas are."""
    served_names: Annotated[list[Annotated[str, Field(max_length=320)]], Field(max_length=64)] | None = None
    """The names that gateways route to this model."""
    last_used: Time | None = None
    """When a request was last in flight, to the minute."""
    last_load: LastLoad | None = None
    """How long the last load took."""
    evictions: Count | None = None
    """How often it gave way to another model."""
    explanation: Explanation | None = None
    """Why it is not loaded, with the arithmetic; absent while it is."""
    backoff: Annotated[list[BackOff], Field(max_length=64)] | None = None
    """Nodes on which it failed."""
    wish: Wish | None = None
    """The last wish of an administrator that was taken note of."""
    estimate: Estimate | None = None
    """The estimate as the server image gave it."""
    queue_since: Time | None = None
    """Since when its place in the queue counts."""
    queue_until: Time | None = None
    """Until when that place is kept although nobody waits any more."""
    turns: Count | None = None
    """How many turns it had."""

    def condition(self, kind: str) -> Condition | None:
        return next((found for found in self.conditions if found.type == kind), None)


def _first(found: Any, limit: int) -> Any:
    return found[:limit] if isinstance(found, list) else found
