"""What `corral explain` printed, made comparable: times and ages gone, and figures named once they are what the arithmetic says."""

from __future__ import annotations

import re
from collections.abc import Mapping

_OWN = re.compile(r"  (memory:|replica |its last load|evictions:)")  # how the model itself is, which other tests look at
_TIMES = ((r" \(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \(in -?\d+ s\)\)", " (<when>)"), (r"\d\d:\d\d:\d\dZ", "<time>"), (r", \d+[smhd] ago", ""))
_FIGURE = re.compile(r"\b(\d+(?:\.\d+)?)(Mi|Gi)\b")


def explained(printed: str, figures: Mapping[str, float]) -> list[str]:
    """`figures`: mebibytes by name. A figure that is one of them, as far as it was rounded, is printed as its name, any other as it is."""
    text = "\n".join(line for line in printed.splitlines() if not _OWN.match(line))
    for pattern, name in _TIMES:
        text = re.sub(pattern, name, text)

    def named(found: re.Match[str]) -> str:
        size, near = (float(found[1]) * 1024, 52.0) if found[2] == "Gi" else (float(found[1]), 1.0)
        return next((f"<{name}>" for name, known in figures.items() if abs(size - known) <= near), found[0])

    return _FIGURE.sub(named, text).splitlines()
