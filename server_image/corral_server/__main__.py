"""The command line: `serve`, `estimate` and `prefetch`."""

import argparse
import sys

from corral_server.reasons import Failure


def main() -> int:
    parser = argparse.ArgumentParser(prog="corral_server", description="The server of one GGUF model.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="serve the model of CORRAL_SPEC; starts asleep")
    estimate = commands.add_parser("estimate", help="say from a file's header alone what the model needs")
    estimate.add_argument(
        "source", nargs="?", default="", help="hf://, https://, http://, file:// or pvc://, or a path; default: the source of CORRAL_SPEC"
    )
    estimate.add_argument("--spec", default="", help="CORRAL_SPEC as JSON; default: the environment's")
    estimate.add_argument("--termination-message", default="", help="a file that gets the same line")
    prefetch = commands.add_parser("prefetch", help="fetch the file of CORRAL_SPEC into the cache and into memory")
    prefetch.add_argument("--termination-message", default="", help="a file that gets the same line")
    arguments = parser.parse_args()
    from corral_server.settings import read_settings  # noqa: PLC0415  the help needs none of it

    try:
        settings = read_settings()
        if arguments.command == "estimate":
            from corral_server.estimate import run  # noqa: PLC0415

            return run(arguments.source, arguments.spec, arguments.termination_message, settings)
        if arguments.command == "prefetch":
            from corral_server.download.prefetch import run as fetch  # noqa: PLC0415

            return fetch(arguments.termination_message, settings)
        from corral_server.serve import serve  # noqa: PLC0415

        serve(settings)
    except (ValueError, Failure) as error:
        print(f"corral_server: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
