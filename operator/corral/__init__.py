"""Corral: many models, few GPUs, one endpoint. This package is the operator, the gateway and the local mode."""

__version__ = "0.1.0"
