"""`biggan copy`: a registered version in another MLflow."""

import argparse

HELP = "copy a registered version to another MLflow's registry"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument("model", metavar="MODEL", help="NAME@ALIAS, NAME/VERSION or NAME/latest, with or without models:/")
    parser.add_argument("--to", metavar="URI|RUN", required=True, help="the MLflow to copy to")
    parser.add_argument("--name", help="registered model there (default: the same)")
    parser.add_argument("--alias", default="challenger", help="alias to set there (default: %(default)s)")
    parser.add_argument("--tracking-uri", metavar="URI|RUN", help="the MLflow to copy from, as in `biggan sample`")


def run(args: argparse.Namespace) -> None:
    """See `pipeline.registry.copying`."""
    from pipeline.registry import versions
    from pipeline.registry.copying import copy_version
    from pipeline.wording import hide_secrets

    versions.check_names(args.name or "biggan", args.alias)
    uri = versions.model_uri(args.model)
    store, to = versions.find_store(args.tracking_uri, uri), versions.find_store(args.to, uri, new=True)
    done = copy_version(store, uri, to, args.name, args.alias)
    print(
        f"{'copied before' if done.known else 'copied'}: {uri} is {done.name} version {done.version}, "
        f"alias {args.alias}, in {hide_secrets(to)}"
    )
