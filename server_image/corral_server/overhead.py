"""What a server uses on host memory beside llama.cpp's buffers. Pure; the constants were measured on loaded and exercised servers.

Must never promise less than is used: the pod's memory limit follows from it.
"""

BASE = 84 << 20
"""Supervisor, zygote, renderer and engine as Python processes with their libraries, after a few thousand requests."""

PER_TOKEN_OF_VOCABULARY = 230
PER_CELL = 120
"""Token numbers as Python objects, in the slot that holds them and in the request."""


def overhead_bytes(vocabulary: int, cells: int, slots: int) -> int:
    # One row of logits per slot on the host, and a few working copies of one.
    rows = (slots + 4) * vocabulary * 4
    return BASE + vocabulary * PER_TOKEN_OF_VOCABULARY + cells * PER_CELL + rows
