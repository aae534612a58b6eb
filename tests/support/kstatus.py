"""The verdict of kstatus on a custom resource, after its documented rules: what `kubectl wait`-like tools, Flux and helm see."""

from typing import Any

TERMINATING, IN_PROGRESS, FAILED, CURRENT = "Terminating", "InProgress", "Failed", "Current"


def kstatus(obj: dict[str, Any]) -> str:
    metadata, status = obj.get("metadata", {}), obj.get("status", {})
    if metadata.get("deletionTimestamp"):
        return TERMINATING
    observed = status.get("observedGeneration")
    if observed is not None and metadata.get("generation") is not None and observed != metadata["generation"]:
        return IN_PROGRESS
    conditions = {found["type"]: found["status"] for found in status.get("conditions", [])}
    if conditions.get("Reconciling") == "True":
        return IN_PROGRESS
    if conditions.get("Stalled") == "True":
        return FAILED
    # Without a Ready condition there is nothing to wait for.
    return CURRENT if conditions.get("Ready", "True") == "True" else IN_PROGRESS
