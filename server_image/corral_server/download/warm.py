"""A file's pages brought into memory before somebody waits for them. The kernel reads ahead; pages that are there already cost next to nothing."""

import os
from pathlib import Path

from corral_server.download.sources import split_parts

_STEP = 8 << 20


def warm(path: str) -> None:
    """All parts of a split file, when it is one."""
    for part in split_parts(Path(path).name):
        with Path(path).with_name(part).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for start in range(0, size, _STEP):
                # In steps: the kernel takes a large wish for a smaller one.
                os.posix_fadvise(file.fileno(), start, _STEP, os.POSIX_FADV_WILLNEED)
