"""The gateway over one pod at a given port, with no operator: what `bench/gateway.py` measures. Prints its ports.

`python bench/gateway_alone.py POD_PORT [--key]`
"""

import json
import resource
import sys

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from corral.gateway.app import create_app
from corral.gateway.directory import MemoryDirectory
from corral.gateway.keys import MemoryKeys, new_key, parse_key
from corral.gateway.ports import ModelView, ReplicaView
from corral.gateway.server import serve
from corral.gateway.settings import GatewaySettings
from corral.tokens import TokenSigner


class Sink:
    async def publish(self, report):
        pass


def main():
    port = int(sys.argv[1])
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    keys = MemoryKeys()
    presented = ""
    if "--key" in sys.argv:
        presented, fields = new_key("bench")
        keys.put(parse_key("bench", fields))
    directory = MemoryDirectory(synced=True)
    directory.put_model(ModelView("models", "bench", served_names=("bench",), state="Loaded", ready=True))
    directory.put_replica(ReplicaView("models/bench", "bench-0", "uid-0", "127.0.0.1", inference_port=port, control_port=port, state="Loaded"))
    settings = GatewaySettings(host="127.0.0.1", port=0, admin_host="127.0.0.1", admin_port=0, grace=1)
    gateway = create_app(directory, Sink(), TokenSigner(Ed25519PrivateKey.generate()), settings, keys=keys)

    def ready(server):
        print(json.dumps({"port": server.port, "admin": server.admin_port, "key": presented}), flush=True)

    uvloop.run(serve(gateway, ready=ready))


main()
