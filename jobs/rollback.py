"""`biggan rollback`: the champion before this one is champion again."""

import argparse

from pipeline.errors import ConfigError

HELP = "give the champion's alias back to the version that had it before"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument("name", metavar="NAME", help="registered model")
    parser.add_argument("--alias", default="champion", help="the alias to move (default: %(default)s)")
    parser.add_argument("--tracking-uri", metavar="URI|RUN", help="as in `biggan sample`")


def run(args: argparse.Namespace) -> None:
    """See `pipeline.registry.gate`."""
    from pipeline.registry import versions
    from pipeline.registry.gate import rollback

    versions.check_alias("--alias", args.alias)
    name = args.name.removeprefix("models:/")
    if set(name) & set("@/"):
        raise ConfigError(f"NAME {args.name}: the version is the one that {args.alias} means; pass the name alone")
    store = versions.find_store(args.tracking_uri, name)
    moved = rollback(store, name, args.alias, lambda line: print(line, flush=True))
    print(f"rolled back: {moved.name} version {moved.version} is {args.alias} again (before: {moved.before})")
