"""`biggan status`: where a run stands, by its scheduler, its journal and its checkpoints."""

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.wording import command, plural, printable

if TYPE_CHECKING:
    from pipeline.config import RunConfig

HELP = "where a run stands: its job, progress, speed, checkpoint, MLflow"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Command`."""
    parser.add_argument("folder", metavar="RUN", type=Path, help="the run's folder")


def run(args: argparse.Namespace) -> None:
    """See `jobs.cli.Command`. Raises ConfigError for a folder without a run."""
    from pipeline.runs.run_folder import load_run_config

    config = load_run_config(args.folder)
    rows = {"state": _state(args.folder), "job": _job(args.folder), "progress": _progress(args.folder, config)}
    rows |= {"checkpoint": _checkpoint(config), "mlflow": _mlflow(args.folder, config)}
    print(args.folder)
    for name, said in rows.items():
        for line in said.splitlines():
            print(f"  {name:<10} {printable(line)}")
            name = ""


def _state(folder: Path) -> str:
    from pipeline.fault_tolerance import stop
    from pipeline.runs import run_folder
    from pipeline.storage import run_lock

    status = run_folder.read_status(folder / "status.json")
    if status is None:
        return "has not begun"
    state = status.state
    if state == "running" and not run_lock.is_training(folder):
        state = "ended without a word (killed, or its node lost)"
    if stop.requested(folder):
        state += ", asked to stop"
    code = f", exit code {status.exit_code}" if status.exit_code else ""
    return printable(state + code + (f": {status.message}" if status.message else ""))


def _job(folder: Path) -> str:
    from pipeline.cluster import slurm, submission

    try:
        last = submission.read(folder)
    except UserError as error:
        return str(error)
    if last is None:
        return ""
    if last.scheduler != "slurm":
        return f"{last.scheduler} {last.job}"
    lines = []
    for name, number in {"": last.job, **last.then}.items():
        try:
            job = slurm.find(number)
        except UserError as error:
            return f"Slurm {number}: {error}"
        lines.append(f"{name + ': ' if name else ''}Slurm {job or f'job {number}, which it no longer knows: it has ended'}")
    return "\n".join([*lines, last.log])


def _progress(folder: Path, config: "RunConfig") -> str:
    from pipeline.tracking import journal
    from pipeline.tracking.records import MetricsRecord

    last = None
    for record, _ in journal.read(folder):
        if isinstance(record, MetricsRecord) and "images_per_second" in record.metrics:
            last = record
    if last is None:
        return f"nothing reported yet, of {config.total_images:,} images"
    images, speed = last.step, last.metrics["images_per_second"]
    ago = time.time() - last.time / 1000
    left = (config.total_images - images) / speed if speed > 0 else 0
    eta = f", {_span(left)} left" if left > 0 else ""
    return (
        f"{images:,} of {config.total_images:,} images ({images / config.total_images:.0%}), {speed:,.1f} images/s{eta}, "
        f"reported {_span(ago)} ago"
    )


def _checkpoint(config: "RunConfig") -> str:
    from pipeline.checkpoint import format
    from pipeline.runs.trusted_places import kept_checkpoints

    try:
        newest = next(format.committed(kept_checkpoints(config)), None)
    except UserError as error:
        return str(error)
    return f"{newest.images:,} images, {_span(time.time() - newest.time)} ago, {newest.uri}" if newest else _none(config)


def _none(config: "RunConfig") -> str:
    from pipeline.runs.resume import saved_images
    from pipeline.runs.trusted_places import checkpoint_uri

    try:
        saved = saved_images(Path(config.run))
    except UserError as error:
        return str(error)
    return f"none at {checkpoint_uri(config)}, but the run was saved at image {saved:,}" if saved else "none yet"


def _mlflow(folder: Path, config: "RunConfig") -> str:
    """The run's page, once it is there, and what it lacks."""
    from pipeline.tracking.delivered import undelivered

    lacks = undelivered(folder)
    lines = [_page(folder, config)]
    if why := lacks.get("why"):
        lines.append(f"lacks records ({why}): once that is fixed, {command('sync', folder)} delivers them")
    if refused := lacks.get("refused"):
        lines.append(f"refuses {plural(len(refused), 'record')}, which journal.jsonl keeps: {refused[0]}")
    return "\n".join(lines)


def _page(folder: Path, config: "RunConfig") -> str:
    from pipeline.tracking import journal
    from pipeline.tracking.delivered import delivered
    from pipeline.tracking.mlflow_store import store_uri
    from pipeline.tracking.records import OpenRecord
    from pipeline.wording import hide_secrets

    if config.tracking.mode == "off":
        return "off"
    tracked = [record.open.uri for record, _ in journal.read(folder) if isinstance(record, OpenRecord)]
    uri = hide_secrets(store_uri(folder, tracked[-1] if tracked else config.tracking.uri))
    if not uri.startswith("http"):
        return shlex.join(["mlflow", "ui", "--backend-store-uri", uri])
    if not (runs := list(delivered(folder))):
        return f"{uri} (nothing there yet)"
    return f"{uri.rstrip('/')}/#/runs/{runs[-1]}"


def _span(seconds: float) -> str:
    """40 s, 12 min, 3.5 h, 2.1 days."""
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "min")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86400:.1f} days"
