"""`biggan promote`: a version becomes the champion if it passes the gate."""

import argparse
import math

from pipeline.errors import ConfigError

HELP = "make a registered version the champion, if it loads by itself and is better than the one before"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument(
        "model",
        metavar="NAME",
        help="NAME@ALIAS, NAME/VERSION or NAME/latest, with or without models:/; NAME alone is NAME@challenger",
    )
    parser.add_argument("--to", metavar="ALIAS", default="champion", help="the alias to move (default: %(default)s)")
    parser.add_argument("--metric", metavar="NAME", help="what decides, as in 'FID[inception]' (default: the only FID)")
    parser.add_argument(
        "--limit", type=float, metavar="VALUE", help="the metric must be as good as this; enough for a first champion"
    )
    parser.add_argument("--first", action="store_true", help="there is no champion yet: take this one without a comparison")
    parser.add_argument("--allow-equal", action="store_true", help="as good as the champion is good enough")
    parser.add_argument("--other-dataset", action="store_true", help="the champion may have been trained on other data")
    parser.add_argument("--again", action="store_true", help="the version may be one that was rolled back")
    parser.add_argument("--tracking-uri", metavar="URI|RUN", help="as in `biggan sample`")


def run(args: argparse.Namespace) -> None:
    """See `pipeline.registry.gate`."""
    if args.limit is not None and not math.isfinite(args.limit):
        raise ConfigError(f"--limit {args.limit}: must be a number")
    from pipeline.registry import versions
    from pipeline.registry.gate import promote
    from pipeline.registry.gate_checks import Terms
    from pipeline.wording import command

    versions.check_alias("--to", args.to)
    uri = versions.model_uri(args.model, "challenger")
    terms = Terms(
        alias=args.to,
        metric=args.metric,
        limit=args.limit,
        first=args.first,
        allow_equal=args.allow_equal,
        other_dataset=args.other_dataset,
        again=args.again,
    )
    moved = promote(versions.find_store(args.tracking_uri, uri), uri, terms, lambda line: print(line, flush=True))
    if not moved.why:
        print(f"{moved.name} version {moved.version} is {args.to} already")
        return
    print(f"promoted: {moved.name} version {moved.version} is {args.to} (before: {moved.before or 'none'}): {moved.why}")
    if moved.before:
        flags = [] if args.to == versions.CHAMPION else ["--alias", args.to]
        flags += ["--tracking-uri", args.tracking_uri] if args.tracking_uri else []
        print(f"back: {command('rollback', moved.name, *flags).strip('`')}")
