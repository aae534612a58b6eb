"""What a server uses on host memory beside llama.cpp's buffers. Pure; the constants were measured on loaded and exercised servers.

Must never promise less than is used: the pod's memory limit follows from it.
"""

BASE = 95 << 20
"""Supervisor, zygote, renderer and engine as Python processes with their libraries, their heaps in huge pages, after some hundred requests."""

PER_TOKEN_OF_VOCABULARY = 150
PER_CELL = 120
"""Token numbers as Python objects, in the slot that holds them and in the request."""

SHOWN = 288 << 20
"""Where there is a projector: the largest images and audio of one request, three times over while they are decoded, handed on and made ready."""

SHOWN_PER_SLOT = 32 << 20
"""What a request keeps of them until it is answered, in the projector's size."""

_WORKING_ROWS = 4


def overhead_bytes(vocabulary: int, cells: int, output_rows: int) -> int:
    """`output_rows`: how many tokens of a batch have outputs; llama.cpp keeps a row of logits for each on the host, also where nobody reads them."""
    rows = (output_rows + _WORKING_ROWS) * vocabulary * 4
    return BASE + vocabulary * PER_TOKEN_OF_VOCABULARY + cells * PER_CELL + rows


def beside_bytes(vocabulary: int, cells: int, output_rows: int) -> int:
    """Of a second model in the same process, which guesses for the first."""
    return vocabulary * PER_TOKEN_OF_VOCABULARY + cells * PER_CELL + (output_rows + 1) * vocabulary * 4
