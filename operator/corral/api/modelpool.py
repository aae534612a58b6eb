"""ModelPool: which nodes, and the policy on them. A cluster without any behaves as if it had one named `default` with these defaults."""

from datetime import timedelta
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from corral.api.base import Condition, Labels, Name, ObjectName, Part, Resource, Text
from corral.api.lists import Unique
from corral.api.types import GI, Bytes, Duration, RoundedBytes, Rule

Count = Annotated[int, Field(ge=0)]


def seconds(count: int) -> timedelta:
    return timedelta(seconds=count)


class Dra(Part):
    """Dynamic resource allocation."""

    device_class_name: ObjectName = "gpu.nvidia.com"
    """The DeviceClass of the devices."""


class StaticDevice(Part):
    """A device that is known because it is written here."""

    node: ObjectName
    """The node's name."""
    id: Annotated[str, Field(max_length=253, min_length=1)]
    """What the device is called on its node: an index or a uuid."""
    memory: Bytes
    """Bytes of memory that it has."""
    product: Annotated[str, Field(max_length=253)] = ""
    """What it is, for `memoryMargins`."""


class HostMemory(Part):
    """Models that live in a node's main memory."""

    capacity: Bytes | None = None
    """Bytes of each node that models may use. Default: the node's allocatable memory less what foreign pods request."""


class Devices(Part):
    """How the pool knows and binds devices."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.from != 'Static' || (has(self.static) && size(self.static) > 0)",
            message="devices.from Static needs at least one entry in devices.static",
            holds=lambda it: it.from_ != "Static" or bool(it.static),
        ),
    )

    from_: Annotated[Literal["Auto", "DRA", "DevicePlugin", "Static", "HostMemory"], Field(alias="from")] = "Auto"
    """Where devices are learned from: `DRA` from ResourceSlices, `DevicePlugin` from node labels, `Static` from the list below, `HostMemory` from the
    node's main memory; `Auto` takes the first of these, in this order, that a node offers."""
    dra: Dra = Dra()
    """Dynamic resource allocation."""
    static: Annotated[list[StaticDevice], Field(max_length=1024), Unique(("node", "id"))] = Field(default_factory=list)
    """Devices that are written here."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of pods whose GPU is named to them by environment (`DevicePlugin`, `Static`), such as `nvidia`; unset: the node's default
    runtime. Not used with `DRA`."""
    host_memory: HostMemory = HostMemory()
    """Models that live in a node's main memory."""


class Allowed(Part):
    """Who may use the pool, and how far."""

    namespaces: Annotated[
        list[Annotated[str, Field(max_length=63, min_length=1, pattern=r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$")]], Field(max_length=1024), Unique()
    ] = Field(default_factory=lambda: ["*"])
    """Namespaces whose ModelDeployments may name this pool; `*`: all."""
    max_priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = 1000
    """The highest priority that a ModelDeployment may have here."""
    pinned: bool = True
    """Whether ModelDeployments may be pinned here."""


class ProductMargin(Part):
    """The margin on devices of one product."""

    product: Annotated[str, Field(max_length=253, min_length=1)]
    """The product's name as the device says it, such as `NVIDIA-L4`."""
    margin: Bytes
    """Bytes that are left free on each."""


class Eviction(Part):
    """Who gives way, and how."""

    policy: Literal["LRU", "CostAware"] = "LRU"
    """Which idle model gives way first: `LRU` the least recently used one, `CostAware` the one that is loaded again in the least time per byte."""
    min_residency: Duration = seconds(30)
    """How long a loaded model stays at least."""
    drain_timeout: Duration = seconds(30)
    """How long requests in flight may still take when a turn has ended."""


class Idle(Part):
    """When models rest without pressure."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="duration(self.stopAfter) >= duration(self.sleepAfter)",
            message="idle.stopAfter must be at least idle.sleepAfter: a replica sleeps before it stops",
            holds=lambda it: it.stop_after >= it.sleep_after,
        ),
    )

    sleep_after: Duration = seconds(300)
    """Idle time after which a replica gives up its device memory."""
    stop_after: Duration = seconds(1800)
    """Idle time after which its pod goes too."""


class Fairness(Part):
    """How busy models that do not fit together take turns."""

    max_wait: Duration = seconds(30)
    """How long a request may wait before the turn of the models in its way ends."""
    turn: Duration = seconds(30)
    """How long a turn lasts at least."""


class Hold(Part):
    """How requests wait in the gateway for their model."""

    timeout: Duration = seconds(180)
    """How long a request waits at most."""
    per_model: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Requests that wait for one model at most, in each gateway."""
    total: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Requests that wait at most, in each gateway."""
    heartbeat: Duration = seconds(15)
    """How long a streaming client that waits hears nothing at most."""


class Cache(Part):
    """Where model files are kept."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(self.type == 'PersistentVolumeClaim') == (has(self.claimName) || has(self.storageClassName))",
            message="cache.type PersistentVolumeClaim, and no other, needs claimName or storageClassName",
            holds=lambda it: (it.type == "PersistentVolumeClaim") == (it.claim_name is not None or it.storage_class_name is not None),
        ),
        Rule(
            cel="(self.type == 'HostPath') == has(self.path)",
            message="cache.type HostPath, and no other, needs path",
            holds=lambda it: (it.type == "HostPath") == (it.path is not None),
        ),
    )

    type: Literal["EmptyDir", "PersistentVolumeClaim", "HostPath"] = "EmptyDir"
    """`EmptyDir`: with the pod, gone with it. `PersistentVolumeClaim`: a claim in each namespace. `HostPath`: a folder of the node, shared by all
    pods on it; Pod Security `restricted` forbids it."""
    size: Bytes = 200 * GI
    """Bytes at most; the least recently used files go first."""
    claim_name: ObjectName | None = None
    """An existing claim of this name in each namespace that has models."""
    storage_class_name: ObjectName | None = None
    """Without claimName: the class of a claim that is made for each pod and goes with it."""
    path: Annotated[str, Field(max_length=1024, pattern="^/[^/].*$")] | None = None
    """The folder of the node, an absolute path."""
    warm: Annotated[int, Field(ge=0, le=64)] = 0
    """Of so many sleeping models on each node, those that were used last, the files are kept in the node's page cache, so that they load
    without the disk."""


class ModelPoolSpec(Part):
    """Which nodes, and the policy on them."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=(
                "duration(self.hold.timeout) >= duration(self.fairness.maxWait) + duration(self.fairness.turn) + duration(self.eviction.drainTimeout)"
            ),
            message="hold.timeout must be at least fairness.maxWait + fairness.turn + eviction.drainTimeout: a request waits that long for its turn",
            holds=lambda it: it.hold.timeout >= it.fairness.max_wait + it.fairness.turn + it.eviction.drain_timeout,
        ),
    )

    node_selector: Labels = Field(default_factory=dict)
    """Labels of the pool's nodes. Default: every node that has a device and belongs to no other pool."""
    devices: Devices = Devices()
    """How the pool knows and binds devices."""
    allowed: Allowed = Allowed()
    """Who may use the pool, and how far."""
    memory_margin: Bytes = GI
    """Bytes that are left free on every device."""
    memory_margins: Annotated[list[ProductMargin], Field(max_length=64), Unique(("product",))] = Field(default_factory=list)
    """Bytes that are left free on devices of certain products."""
    max_models_per_device: Annotated[int, Field(ge=1, le=256)] = 16
    """How many models may be on one device, loaded or asleep."""
    eviction: Eviction = Eviction()
    """Who gives way, and how."""
    idle: Idle = Idle()
    """When models rest without pressure."""
    fairness: Fairness = Fairness()
    """How busy models that do not fit together take turns."""
    hold: Hold = Hold()
    """How requests wait in the gateway for their model."""
    cache: Cache = Cache()
    """Where model files are kept."""

    def margin(self, product: str = "") -> int:
        """Bytes that stay free on a device of this product."""
        return next((found.margin for found in self.memory_margins if found.product == product), self.memory_margin)


class PoolDevice(Part):
    """A device as the operator counts it."""

    node: Name
    """The node's name."""
    id: Name
    """The device's name or uuid."""
    product: Name = ""
    """What it is."""
    capacity: RoundedBytes
    """Bytes that it has."""
    committed: RoundedBytes
    """Bytes that are given to models."""
    free: RoundedBytes
    """Bytes that can still be given, margin taken off."""
    models: Count
    """Models on it."""


class ModelPoolStatus(Part):
    """What is."""

    observed_generation: int | None = None
    """The generation of the spec that this status is about."""
    conditions: Annotated[list[Condition], Field(max_length=16), Unique(("type",))] = Field(default_factory=list)
    """`Ready`, and `Overlapping` while another pool has some of its nodes."""
    nodes: Count | None = None
    """Nodes of the pool that have a device."""
    device_count: Count | None = None
    """Devices of the pool."""
    capacity: RoundedBytes | None = None
    """Bytes of all devices."""
    committed: RoundedBytes | None = None
    """Bytes of all devices that are given to models."""
    free: RoundedBytes | None = None
    """Bytes of all devices that can still be given, margins taken off."""
    models: Count | None = None
    """ModelDeployments that name this pool."""
    devices: Annotated[list[PoolDevice], Field(max_length=512)] | None = None
    """The devices, the first 512."""
    message: Text | None = None
    """What is worth knowing beside the conditions."""


class ModelPool(Resource):
    """A set of nodes and the policy on them. A node belongs to exactly one pool: a selector that names labels wins over the empty one, then the older
    pool, then the name."""

    KIND: ClassVar[str] = "ModelPool"
    PLURAL: ClassVar[str] = "modelpools"
    SHORT_NAME: ClassVar[str] = "mp"
    NAMESPACED: ClassVar[bool] = False

    spec: ModelPoolSpec = ModelPoolSpec()
    """What is wanted."""
    status: ModelPoolStatus = ModelPoolStatus()
    """What is."""
