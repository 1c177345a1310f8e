"""`biggan NAME ...` runs `jobs/NAME.py`; a new file there is a new sub-command.

It exits with a code of `pipeline.exit_codes`.
"""

import argparse
import difflib
import importlib
import os
import pkgutil
import re
import signal
import sys
import textwrap
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn, Protocol, cast

import jobs
from pipeline import exit_codes
from pipeline.errors import ConfigError, UserError, as_user_error
from pipeline.redaction import guard, guarded
from pipeline.tracking.terminal import complete_streams
from pipeline.wording import printable

# The order of a first tour; a job that is not named here follows, by name.
_TOUR = (
    *("demo", "shard", "train", "node", "submit", "status", "stop", "sync", "report", "describe", "plan", "evaluate"),
    *("register", "promote", "rollback", "copy", "export", "dockerfile", "sample", "explore", "import"),
)

_EPILOG = f'"biggan COMMAND --help" explains a command. Exit codes: {exit_codes.listed()}.'


class Command(Protocol):
    """What a module `jobs/NAME.py` offers. It is imported for every `--help`, so torch and the like wait for `run`."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments of the sub-command."""

    def run(self, args: argparse.Namespace) -> int | None:
        """Do it. Returns the exit code, None for 0; raises UserError for what the user can mend."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # A scheduler must not retry a misspelt flag, so wrong usage leaves with the configuration's code, not argparse's 2.
        raise ConfigError(f"{message} (`{self.prog} --help` lists what there is)")


def commands() -> list[str]:
    """Names of all sub-commands: the modules beside this one."""
    names = [module.name for module in pkgutil.iter_modules(jobs.__path__) if module.name != "cli"]
    return sorted(names, key=lambda name: (_TOUR.index(name) if name in _TOUR else len(_TOUR), name))


def _version() -> str:
    try:
        return version("biggan-pipeline")
    except PackageNotFoundError:  # run from a copy of the code
        return "not installed"


def _parser(names: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="biggan",
        description="BigGAN, from images in object storage to a registered generator.",
        epilog=textwrap.fill(_EPILOG, 95),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in names:
        job = cast(Command, importlib.import_module(f"jobs.{name}"))
        sub = subparsers.add_parser(name, help=job.HELP, description=job.HELP)
        job.add_arguments(sub)
        sub.add_argument(
            "--allow",
            metavar="ADDRESS",
            action="append",
            default=[],
            help="a store (s3://BUCKET, http://HOST) or local folder to read from if a manifest or a run's folder names it; "
            "remembered, as are addresses typed here",
        )
        sub.set_defaults(run=job.run)
    return parser


def _dispatch(argv: Sequence[str]) -> int:
    names = commands()
    if argv and not argv[0].startswith("-"):
        if argv[0] not in names:
            nearest = difflib.get_close_matches(argv[0], names, n=1)
            hint = f"did you mean `biggan {nearest[0]}`?" if nearest else f"there are: {', '.join(names)}"
            raise ConfigError(f"no command {argv[0]!r}; {hint}")
        names = [argv[0]]
    elif not argv:
        argv = ["--help"]
    parser = _parser(names)
    args, rest = parser.parse_known_args(argv)
    if rest:
        # Python 3.11 gives the `key=value` behind a flag to nobody.
        if not hasattr(args, "overrides") or any(part.startswith("-") or "=" not in part for part in rest):
            parser.prog = f"biggan {argv[0]}"
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.overrides += rest
    if getattr(args, "overrides", None):
        from pipeline.config_tree import refuse_twice

        refuse_twice(args.overrides)
    if typed := [*args.allow, *_addresses(argv)]:
        from pipeline.storage import trusted_stores

        trusted_stores.note("read", typed)
    return args.run(args) or 0


def _addresses(argv: Sequence[str]) -> list[str]:
    """The addresses of stores in a command line: its words, and what follows `=` there."""
    values = [part for word in argv for part in (word, word.partition("=")[2])]
    return [value for value in values if re.match(r"[a-z][a-z0-9+.-]*://", value)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `biggan` with `argv` (default: the process's arguments) and return the exit code. No secret is printed."""
    with guarded():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    try:
        code = _dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # a reader that has gone must show here, not while the interpreter ends
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.PIPE_CLOSED.number  # as every tool in a pipeline that SIGPIPE ended
    except KeyboardInterrupt:
        print("biggan: interrupted", file=sys.stderr)
        return exit_codes.INTERRUPTED.number
    except (UserError, OSError) as error:
        known = error if isinstance(error, UserError) else as_user_error(error)
        if known is None:
            raise
        print(f"biggan: error: {printable(str(known))}", file=sys.stderr)
        return known.exit_code


def program() -> NoReturn:
    """The `biggan` command."""
    complete_streams()
    guard()  # for the process's life: a traceback is printed after `main`
    code = main()
    # srun ends the nodes that are slower to leave than the first, and an exit code of their own would be lost.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    program()
