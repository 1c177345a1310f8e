"""`biggan dockerfile`: what `docker build` needs to serve a registered version."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from pipeline.errors import ConfigError, StorageError

HELP = "write a Dockerfile, with the model beside it, that serves a registered version"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument("model", metavar="MODEL", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    parser.add_argument("dst", metavar="DST", type=Path, help="a new folder")
    parser.add_argument("--tracking-uri", metavar="URI|RUN", help="as in `biggan sample`")


def run(args: argparse.Namespace) -> None:
    """MLflow writes it, of the version that an alias means now."""
    if args.dst.exists():
        raise ConfigError(f"DST {args.dst} is there already: name a new folder")
    from pipeline import imports, registry
    from pipeline.mlflow_store import calm_mlflow

    calm_mlflow()
    store = registry.find_store(args.tracking_uri, args.model)
    with registry.store_errors(store):
        version = registry.resolve(registry.use(store), args.model)
    command = [sys.executable, "-m", "mlflow", "models", "generate-dockerfile", "--env-manager", "local"]
    command += ["-m", f"models:/{version.name}/{version.version}", "-d", str(args.dst)]
    environment = os.environ | imports.environment() | {"MLFLOW_TRACKING_URI": store, "MLFLOW_REGISTRY_URI": store}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StorageError(f"MLflow wrote no Dockerfile: {(done.stderr.strip() or 'it does not say why').splitlines()[-1]}")
    print(f"{args.dst}: {version.name} version {version.version}")
    print(f"next: docker build -t {version.name.lower()} {args.dst} && docker run -p 8080:8080 {version.name.lower()}")
