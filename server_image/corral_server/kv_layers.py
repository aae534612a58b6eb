"""How the cache's bytes lie over the layers, from what llama.cpp says while it plans them. Pure: log lines in, numbers out.

Sliding windows, layers without a cache and recurrent states are all known to the library only; its totals are exact, the shares follow its log.
"""

import re
from collections.abc import Sequence

_LAYER = re.compile(r"llama_(?:kv_cache|memory_recurrent)\S* layer +(\d+): dev = ")
_SIZE = re.compile(r"llama_(?:kv_cache|memory_recurrent): size = +([0-9.]+) MiB")


def kv_shares(lines: Sequence[str], total: int, count: int, heads: object) -> list[int]:
    """`total` bytes over `count` layers; within one cache by the layers' numbers of heads, when the header lists them."""
    by_layer = [max(int(h), 0) for h in heads] if isinstance(heads, list) and len(heads) == count else [1] * count
    weights = [0.0] * count
    members: list[int] = []
    for line in lines:
        if found := _LAYER.search(line):
            members.append(int(found[1]))
        elif found := _SIZE.search(line):
            members = [m for m in members if m < count]
            whole = sum(by_layer[m] for m in members)
            for member in members:
                share = by_layer[member] / whole if whole else 1 / len(members)
                weights[member] += float(found[1]) * share
            members = []
    if not sum(weights):
        weights = [float(w) for w in by_layer]
    return _exactly(weights, total)


def _exactly(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in these proportions that add up to `total`."""
    whole = sum(weights)
    if not whole:
        return [0] * len(weights)
    shares = [int(total * w / whole) for w in weights]
    largest = max(range(len(shares)), key=lambda i: shares[i])
    shares[largest] += total - sum(shares)
    return shares
