"""Every reason word of Corral, once.

The same word appears in conditions, events, logs, metric labels and HTTP errors; an HTTP error's `code` is its snake_case. This module owns the
words and must never hold logic beyond spelling them.
"""

from __future__ import annotations

import re

# Residency (condition Loaded): what a model is doing now.
LOADED = "Loaded"
IDLE = "Idle"  # at rest without a pod
SLEEPING = "Sleeping"  # a pod is there, its engine is not
DOWNLOADING = "Downloading"
LOADING = "Loading"
STARTING = "Starting"  # the pod is being scheduled or started
DRAINING = "Draining"
EVICTING = "Evicting"  # room is being made for it
WAITING_FOR_MEMORY = "WaitingForMemory"
WAITING_FOR_TURN = "WaitingForTurn"
WAITING_FOR_GRANT = "WaitingForGrant"  # the kubelet has not granted the memory yet
BACKING_OFF = "BackingOff"

# Validity and placement (conditions Ready, Stalled, Estimated, Placed).
READY = "Ready"
ESTIMATED = "Estimated"
ESTIMATING = "Estimating"
ESTIMATE_FAILED = "EstimateFailed"
PLACED = "Placed"
NOT_PLACED = "NotPlaced"
ROLLING_OUT = "RollingOut"
OBSERVED = "Observed"
HEALTHY = "Healthy"
DOES_NOT_FIT = "DoesNotFit"
PINNED_DOES_NOT_FIT = "PinnedDoesNotFit"
NO_DEVICES = "NoDevices"
POOL_NOT_FOUND = "PoolNotFound"
POOL_NOT_ALLOWED = "PoolNotAllowed"
NAME_TAKEN = "NameTaken"
OVERLAPPING = "Overlapping"
INVALID = "Invalid"
DELETED = "Deleted"
SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, not a secret
UNSCHEDULABLE = "Unschedulable"
BINDING_DIFFERS = "BindingDiffers"

# Failures of download, estimate and load, as the server reports them.
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

# Why an action was taken (events, metrics, logs).
REQUESTED = "Requested"  # somebody waits for it
FLOOR = "Floor"  # minReplicas or pinned
SCALE_UP = "ScaleUp"
SCALE_DOWN = "ScaleDown"
WISHED = "Wished"  # a manual load or unload
EVICTED = "Evicted"  # made room for another model
TURN_ENDED = "TurnEnded"
IDLE_TIMEOUT = "IdleTimeout"
REVISION_REPLACED = "RevisionReplaced"
NODE_LOST = "NodeLost"
DEVICE_LOST = "DeviceLost"
CLAIM_IN_THE_WAY = "ClaimInTheWay"
RESIDUE_IN_THE_WAY = "ResidueInTheWay"
FAILED = "Failed"

# Why a replica is not a victim.
IN_FLIGHT = "InFlight"
PINNED = "Pinned"
HIGHER_PRIORITY = "HigherPriority"
YOUNG = "Young"  # below minResidency
JUST_LOADED = "JustLoaded"  # for a waiter that is still there
WANTED = "Wanted"  # the queue itself wants it
FLOOR_OF_SAME_PRIORITY = "FloorOfSamePriority"
IN_ITS_TURN = "InItsTurn"
SAME_PRIORITY = "SamePriority"  # a floor never makes a model of its own priority give way
LEAVING = "Leaving"  # it is being evicted already
UNREACHABLE = "Unreachable"  # its supervisor does not answer: it counts in full and cannot be drained
CLAIMED = "Claimed"  # a device is claimed for another namespace

# Why a device is closed to new placement.
NOT_READY = "NotReady"
CORDONED = "Cordoned"
TAINTED = "Tainted"
FOREIGN_CLAIM = "ForeignClaim"
VANISHED = "Vanished"
MARGIN = "Margin"
MODELS_PER_DEVICE = "ModelsPerDevice"
POD_SLOTS = "PodSlots"


def http_code(reason: str) -> str:
    """The `code` of an HTTP error for a reason: `DoesNotFit` -> `does_not_fit`, `NotAGGUF` -> `not_a_gguf`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", reason).lower()
