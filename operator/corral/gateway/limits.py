"""How much each key may do: requests and tokens per minute, requests at once. Pure: time is passed in.

Each gateway grants its part of a limit (the limit divided by the number of live gateways), so that no two have to speak. Tokens are reserved when a
request is admitted and settled when the pod has told what it used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from corral.gateway.effects import Rejection
from corral.gateway.keys import ApiKey

Headers = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class _Bucket:
    """Fills steadily, holds a minute's worth."""

    level: float
    at: float

    def fill(self, per_minute: float, now: float) -> None:
        self.level = min(per_minute, self.level + (now - self.at) * per_minute / 60)
        self.at = now


@dataclass(slots=True)
class Admission:
    """One admitted request of one key."""

    key: ApiKey
    reserved: int
    headers: Headers
    over: bool = False


class Limiter:
    def __init__(self, live_gateways: Callable[[], int]) -> None:
        self._live = live_gateways
        self._requests: dict[str, _Bucket] = {}
        self._tokens: dict[str, _Bucket] = {}
        self._running: dict[str, int] = {}

    def running(self, key_id: str) -> int:
        return self._running.get(key_id, 0)

    def admit(self, key: ApiKey, tokens: int, now: float) -> Admission | tuple[Rejection, Headers]:
        """Take the request in, or say what is used up and for how long. Nothing is taken when it is refused."""
        share = 1 / max(1, self._live())
        running = self._running.get(key.id, 0)
        if key.concurrent is not None and running >= max(1, math.ceil(key.concurrent * share)):
            return _refusal(key, f"{running} requests are running (concurrent {key.concurrent})", 1.0), []
        headers: Headers = []
        requests = self._bucket(self._requests, key.id, key.requests_per_minute, share, now)
        spent = self._bucket(self._tokens, key.id, key.tokens_per_minute, share, now)
        if requests is not None and key.requests_per_minute is not None:
            wait = _wait(requests, 1, key.requests_per_minute * share)
            if wait:
                headers += _headers("requests", key.requests_per_minute, requests.level / share, wait)
                return _refusal(key, f"requestsPerMinute {key.requests_per_minute} is used up", wait), headers
        if spent is not None and key.tokens_per_minute is not None:
            limit = key.tokens_per_minute * share
            tokens = min(tokens, int(limit))  # one request larger than a minute's worth waits for a full bucket, not for ever
            wait = _wait(spent, tokens, limit)
            if wait:
                headers += _headers("tokens", key.tokens_per_minute, spent.level / share, wait)
                return _refusal(key, f"tokensPerMinute {key.tokens_per_minute} is used up", wait), headers
            spent.level -= tokens
            headers += _headers("tokens", key.tokens_per_minute, spent.level / share, (limit - spent.level) / limit * 60)
        if requests is not None and key.requests_per_minute is not None:
            requests.level -= 1
            limit = key.requests_per_minute * share
            headers += _headers("requests", key.requests_per_minute, requests.level / share, (limit - requests.level) / limit * 60)
        self._running[key.id] = running + 1
        return Admission(key, tokens, headers)

    def end(self, admission: Admission, used: int | None) -> None:
        """The request is over. `used`: its tokens, when they are known; else what was reserved counts."""
        if admission.over:
            return
        admission.over = True
        left = self._running[admission.key.id] - 1
        if left:
            self._running[admission.key.id] = left
        else:
            del self._running[admission.key.id]
        bucket = self._tokens.get(admission.key.id)
        if bucket is not None and used is not None:
            bucket.level += admission.reserved - used

    @staticmethod
    def _bucket(buckets: dict[str, _Bucket], key_id: str, per_minute: int | None, share: float, now: float) -> _Bucket | None:
        if per_minute is None:
            buckets.pop(key_id, None)
            return None
        bucket = buckets.get(key_id)
        if bucket is None:
            bucket = buckets[key_id] = _Bucket(per_minute * share, now)
        bucket.fill(per_minute * share, now)
        return bucket


def _wait(bucket: _Bucket, wanted: float, per_minute: float) -> float:
    """Seconds until the bucket holds this much; 0 when it does. Less than one in all is as much as it can hold."""
    missing = min(wanted, per_minute) - bucket.level
    return 0.0 if missing <= 1e-9 else missing / per_minute * 60


def _refusal(key: ApiKey, what: str, wait: float) -> Rejection:
    return Rejection(429, "rate_limited", f"key {key.id}: {what}", retry_after=max(1, math.ceil(wait)))


def _headers(kind: str, limit: int, remaining: float, reset: float) -> Headers:
    return [
        (f"x-ratelimit-limit-{kind}".encode(), b"%d" % limit),
        (f"x-ratelimit-remaining-{kind}".encode(), b"%d" % max(0, int(remaining + 1e-9))),
        (f"x-ratelimit-reset-{kind}".encode(), f"{max(0.0, reset):.3g}s".encode()),
    ]
