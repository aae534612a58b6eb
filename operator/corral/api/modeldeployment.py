"""ModelDeployment: one served model, as its owner writes it.

What a pool can set has no default here (a default in the schema would make the pool's dead); `effective.py` puts the two together.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from corral.api.base import Labels, ObjectName, OptionalObjectName, Part, Resource
from corral.api.engine import Engine
from corral.api.lists import Unique
from corral.api.mdstatus import ModelDeploymentStatus
from corral.api.source import OptionalSource, Source
from corral.api.types import Cpu, Duration, Rule, Rules

NAME_LIMIT = 40

Alias = Annotated[str, Field(max_length=128, min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")]

QUALIFIED = "^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
RESERVED = ("corral.dev/", "app.kubernetes.io/")


def _unreserved(what: str) -> Rules:
    return Rules(
        (
            Rule(
                cel="self.all(key, !key.startsWith('corral.dev/') && !key.startsWith('app.kubernetes.io/'))",
                message=f"{what} that start with corral.dev/ or app.kubernetes.io/ are Corral's own",
                holds=lambda found: not any(key.startswith(RESERVED) for key in found),
            ),
            Rule(
                cel=f"self.all(key, key.matches('{QUALIFIED}'))",
                message=f"the keys of {what} are NAME or DOMAIN/NAME, as in Kubernetes",
                holds=lambda found: all(re.search(QUALIFIED, key) for key in found),
            ),
        )
    )


class SecretRef(Part):
    """A Secret of the same namespace."""

    name: ObjectName
    """The Secret's name."""


class Model(Part):
    """Which file is served, and where it comes from."""

    source: Source
    """The GGUF file: `hf://ORG/REPO/FILE[@REVISION]`, `https://…`, `http://…`, `s3://BUCKET/KEY`, `oci://REGISTRY/REPO:TAG`, `pvc://CLAIM/PATH` or
    `file:///PATH`. A split model is named by its first part."""
    sha256: Annotated[str, Field(max_length=64, pattern="^([0-9a-f]{64})?$")] = ""
    """SHA-256 of the file in lower-case hex, checked before the file is used. Default: not checked."""
    secret_ref: SecretRef | None = None
    """Credentials for the source, of the keys `token`, `username` and `password`, or `accessKey` and `secretKey`. Default: none."""
    projector: OptionalSource = ""
    """A multimodal projector (mmproj), by the same schemes. Default: none."""


class Scaling(Part):
    """How many replicas, and when they rest."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.maxReplicas >= self.minReplicas",
            message="maxReplicas must be at least minReplicas",
            holds=lambda it: it.max_replicas >= it.min_replicas,
        ),
        Rule(
            cel="!has(self.sleepAfter) || !has(self.stopAfter) || duration(self.stopAfter) >= duration(self.sleepAfter)",
            message="stopAfter must be at least sleepAfter: a replica sleeps before it stops",
            holds=lambda it: it.sleep_after is None or it.stop_after is None or it.stop_after >= it.sleep_after,
        ),
    )

    min_replicas: Annotated[int, Field(ge=0, le=1000)] = 0
    """Replicas that are kept loaded when there is room, or when less important models can give way. `kubectl scale` sets this."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Replicas at most."""
    target_in_flight: Annotated[int, Field(ge=1, le=10000)] = 8
    """Requests in flight per replica before one more is wanted."""
    sleep_after: Duration | None = None
    """Idle time after which the device memory is given up. Default: the pool's."""
    stop_after: Duration | None = None
    """Idle time after which the pod goes too. Default: the pool's."""


class Toleration(Part):
    """A toleration of a pod, as in Kubernetes."""

    key: Annotated[str, Field(max_length=316)] = ""
    """The taint's key. Default: all keys, with operator `Exists`."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """`Equal` compares the value, `Exists` does not."""
    value: Annotated[str, Field(max_length=63)] = ""
    """The taint's value."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """The taint's effect. Default: all effects."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """How long a NoExecute taint is borne, in seconds. Default: for ever."""


class Placement(Part):
    """On which nodes and devices a replica may live, beside what the pool allows."""

    node_selector: Labels = Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(default_factory=list)
    """Taints that the pods bear."""
    max_devices: Annotated[int, Field(ge=1, le=64)] = 1
    """Over how many devices of one node the layers may be split."""


class EnvVar(Part):
    """An environment variable of the server container."""

    name: Annotated[str, Field(max_length=128, min_length=1, pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
    """The variable's name."""
    value: Annotated[str, Field(max_length=4096)] = ""
    """The variable's value."""


class CpuResources(Part):
    """Processor time of the server container."""

    request: Cpu = "100m"
    """What the scheduler sets aside, in CPUs."""
    limit: Cpu | None = None
    """What it may use at most, in CPUs. Default: no limit."""


class Pod(Part):
    """What is added to the server pods."""

    labels: Annotated[Labels, _unreserved("labels")] = Field(default_factory=dict)
    """Further labels."""
    annotations: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=64), _unreserved("annotations")] = Field(
        default_factory=dict
    )
    """Further annotations."""
    env: Annotated[
        list[EnvVar],
        Field(max_length=64),
        Unique(("name",)),
        Rules(
            (
                Rule(
                    cel="self.all(variable, !variable.name.startsWith('CORRAL_'))",
                    message="variables that start with CORRAL_ are Corral's own",
                    holds=lambda found: not any(item.name.startswith("CORRAL_") for item in found),
                ),
            )
        ),
    ] = Field(default_factory=list)
    """Further environment variables."""
    cpu: CpuResources = CpuResources()
    """Processor time."""
    service_account_name: OptionalObjectName = ""
    """The pods' service account; its token is not mounted. Default: the namespace's default one."""
    priority_class_name: OptionalObjectName = ""
    """The pods' priority class for the scheduler. Default: the cluster's default."""


class ModelDeploymentSpec(Part):
    """One served model."""

    model: Model
    """Which file is served."""
    aliases: Annotated[list[Alias], Field(max_length=32), Unique()] = Field(default_factory=list)
    """Further names that a client may put in `model`."""
    engine: Engine = Engine()
    """How the model is run."""
    scaling: Scaling = Scaling()
    """How many replicas, and when they rest."""
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = 0
    """Higher is placed first, and is never evicted for lower. The pool may bound it."""
    pinned: bool = False
    """Loaded at once, never put to sleep, never evicted. The pool may forbid it."""
    pool: ObjectName = "default"
    """The ModelPool whose nodes and policy apply."""
    placement: Placement = Placement()
    """On which nodes and devices a replica may live."""
    pod: Pod = Pod()
    """What is added to the server pods."""


class ModelDeployment(Resource):
    """One served model: a GGUF file, how it is run, and how many replicas it may have."""

    KIND: ClassVar[str] = "ModelDeployment"
    PLURAL: ClassVar[str] = "modeldeployments"
    SHORT_NAME: ClassVar[str] = "md"
    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"size(self.metadata.name) <= {NAME_LIMIT}",
            message=f"a ModelDeployment's name has at most {NAME_LIMIT} characters: its pods are named after it",
            holds=lambda it: len(it.metadata.name) <= NAME_LIMIT,
        ),
    )

    spec: ModelDeploymentSpec
    """What is wanted."""
    status: ModelDeploymentStatus = ModelDeploymentStatus()
    """What is."""


def engine_json(deployment: ModelDeployment) -> dict[str, Any]:
    """The engine settings as the server pod reads them in `CORRAL_SPEC`."""
    return deployment.spec.engine.dump()


def estimated_engine(engine: Mapping[str, Any]) -> dict[str, Any]:
    """What of an engine's settings an estimate depends on: presets cost no memory."""
    return {name: value for name, value in engine.items() if name != "presets"}


def server_spec(deployment: ModelDeployment, *, cache_key: str = "") -> dict[str, Any]:
    """`CORRAL_SPEC`: all that a server pod is told about its model."""
    model = deployment.spec.model
    return {
        "namespace": deployment.metadata.namespace,
        "name": deployment.metadata.name,
        "servedName": deployment.metadata.name,
        "model": {"source": model.source, "sha256": model.sha256, "projector": model.projector},
        "engine": engine_json(deployment),
        "cacheKey": cache_key,
    }


# Linux takes no single variable of 128 KiB or more, name and all (MAX_ARG_STRLEN); a template and prompts in Chinese are longer.
_LONGEST_VARIABLE = 120_000


def server_variables(told: Mapping[str, Any]) -> dict[str, str]:
    """What `server_spec` gives as environment variables: `CORRAL_SPEC`, and for what one cannot hold `CORRAL_SPEC_2`, `CORRAL_SPEC_3` and so on.

    The values are ASCII, and have no dollar sign: Kubernetes takes `$(NAME)` in a value for a variable, and `$$` for one dollar sign.
    """
    text = json.dumps(told, sort_keys=True).replace("$", r"\u0024")
    pieces = [text[start : start + _LONGEST_VARIABLE] for start in range(0, len(text), _LONGEST_VARIABLE)]
    return {f"CORRAL_SPEC_{number}" if number > 1 else "CORRAL_SPEC": piece for number, piece in enumerate(pieces, 1)}
