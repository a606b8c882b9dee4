"""The command line: picks the command, and turns errors into one line and an exit status.

Nothing heavy is imported until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import SafelightError

# Command (and module beside this one) -> what it does.
_COMMANDS = {
    "generate": "make pictures from a prompt, or again from a picture's own settings",
    "inspect": "show what a model is made of, without loading it",
    "train": "train a model on pictures",
}
FAILED, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (by default the process's own) and return its exit status.

    0 on success, 2 after an error (one line on stderr, the traceback only with `--debug`), 130 after ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in arguments if word in _COMMANDS), None)
    args = _parser(command).parse_args(arguments)
    try:
        status = importlib.import_module(f".{args.command}", __package__).run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("\nsafelight: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output (`| head`) has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (SafelightError, OSError) as error:
        if args.debug:
            raise
        print(f"safelight: error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED


def _parser(command: str | None) -> argparse.ArgumentParser:
    """The parser; only `command` gets its arguments, as they cost an import."""
    parser = argparse.ArgumentParser(
        prog="safelight", description="Pretrained diffusion models: make pictures, look inside, train."
    )
    parser.add_argument("--version", action="version", version=f"safelight {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, purpose in _COMMANDS.items():
        own = commands.add_parser(name, help=purpose)
        own.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        if name == command:
            importlib.import_module(f".{name}", __package__).add_arguments(own)
    return parser
