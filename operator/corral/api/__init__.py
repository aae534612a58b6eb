"""The custom resources: pydantic models that are the source of the CRDs, and what holds when a model and its pool are put together."""

from corral.api.base import API_VERSION, GROUP, VERSION, Condition
from corral.api.effective import DEFAULT_POOL, Effective, effective
from corral.api.errors import Cause, InvalidObjectError
from corral.api.gatewayreport import GatewayReport
from corral.api.modeldeployment import ModelDeployment, engine_json, estimated_engine, server_spec, server_variables
from corral.api.modelpool import ModelPool

__all__ = [
    "API_VERSION",
    "DEFAULT_POOL",
    "GROUP",
    "VERSION",
    "Cause",
    "Condition",
    "Effective",
    "GatewayReport",
    "InvalidObjectError",
    "ModelDeployment",
    "ModelPool",
    "effective",
    "engine_json",
    "estimated_engine",
    "server_spec",
    "server_variables",
]
