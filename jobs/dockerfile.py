"""`biggan dockerfile`: what `docker build` needs to serve a registered version."""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline import child_imports
from pipeline.errors import ConfigError, StorageError

BASE = "python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d"
"""What container/Dockerfile begins with, too."""

_USER = """# nginx keeps its logs and buffers where this user may write.
RUN useradd --uid 1000 --create-home biggan && chown -R 1000 /opt/mlflow /var/log/nginx /var/lib/nginx
ENV MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false
USER 1000

ENTRYPOINT"""

HELP = "write a Dockerfile, with the model beside it, that serves a registered version"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument("model", metavar="MODEL", help="NAME@ALIAS, NAME/VERSION or NAME/latest, with or without models:/")
    parser.add_argument("dst", metavar="DST", type=Path, help="a new folder")
    parser.add_argument("--tracking-uri", metavar="URI|RUN", help="as in `biggan sample`")


def run(args: argparse.Namespace) -> None:
    """MLflow writes it, of the version that an alias means now."""
    if args.dst.exists():
        raise ConfigError(f"DST {args.dst} is there already: name a new folder")
    from pipeline.registry import model_files, versions
    from pipeline.tracking.mlflow_store import calm_mlflow

    calm_mlflow()
    uri = versions.model_uri(args.model)
    store = versions.find_store(args.tracking_uri, uri)
    with versions.store_errors(store), tempfile.TemporaryDirectory() as folder:
        client = versions.use(store)
        version = versions.resolve(client, uri)
        model = model_files.fetch(client, version, Path(folder))
        _write(model, args.dst)
    print(f"{args.dst}: {version.name} version {version.version}")
    image = image_name(version.name)
    print(f"next: {shlex.join(['docker', 'build', '-t', image, str(args.dst)])} && docker run -p 8080:8080 {image}")


def image_name(model: str) -> str:
    """Return a name that `docker build` takes for what `model` is called: lower-case letters and digits, with - between."""
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-") or "generator"


def _write(model: Path, dst: Path) -> None:
    command = [sys.executable, "-m", "mlflow", "models", "generate-dockerfile", "--env-manager", "local"]
    command += ["-m", str(model), "-d", str(dst)]
    done = subprocess.run(
        command, env=os.environ | child_imports.child_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise StorageError(f"MLflow wrote no Dockerfile: {(done.stderr.strip() or 'it does not say why').splitlines()[-1]}")
    (dst / "Dockerfile").write_text(guarded((dst / "Dockerfile").read_text()))


def guarded(dockerfile: str) -> str:
    """Return MLflow's Dockerfile with its base by digest, no pickle, and a user that is not root.

    A base for another Python stays a tag, and that is said: of one alone is the digest known. Raises StorageError if MLflow
    writes something else.
    """
    version = ".".join(BASE.removeprefix("python:").split(".")[:2])
    text, ends = re.subn(r"(?m)^ENTRYPOINT", _USER, dockerfile)
    base = re.search(r"(?m)^FROM (\S+)$", text)
    if ends != 1 or base is None:
        raise StorageError("MLflow wrote a Dockerfile of a form that is not known: install the versions of constraints.txt")
    if not re.match(rf"python:{re.escape(version)}\b", base[1]):
        print(f"the base image {base[1]} is named by its tag: a digest is known for Python {version} only", file=sys.stderr)
        return text
    return text.replace(base[0], f"FROM {BASE}", 1)
