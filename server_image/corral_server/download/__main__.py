"""The download process: one order as JSON on stdin, progress and the result as JSON lines on stdout."""

import json
import os
import sys
import time
from pathlib import Path

from corral_server.download.get import Where, get
from corral_server.download.keep import FULL
from corral_server.reasons import NO_SPACE, SOURCE_UNREACHABLE, Failure


def main() -> None:
    order = json.loads(sys.stdin.readline())
    last = 0.0

    def say(message: dict[str, object]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 0.1:
            last = now
            say({"done": done, "total": total})
        if os.getppid() == 1 != order["parent"]:
            sys.exit(1)

    where = Where(
        cache=Path(order["cache"]), cache_key=order["cacheKey"], secret_dir=Path(order["secretDir"]) if order["secretDir"] else None,
        claims_dir=Path(order["claimsDir"]), hub_endpoint=order["hubEndpoint"], allow_local=order["allowLocal"], limit=order["limit"],
    )  # fmt: skip
    try:
        path = get(order["source"], order["sha256"], where, progress)
    except Failure as failure:
        say({"failed": failure.reason, "message": failure.message})
    except OSError as error:
        reason = NO_SPACE if error.errno in FULL else SOURCE_UNREACHABLE
        say({"failed": reason, "message": f"{order['source']}: {error}"})
    else:
        say({"path": str(path), "bytes": path.stat().st_size})


if __name__ == "__main__":
    main()
