"""`biggan checkpoint list|verify|export`: what a run has saved, whether it is whole, its weights as plain files."""

import argparse
import time
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, DataError

if TYPE_CHECKING:
    pass

HELP = "list, verify or export checkpoints"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument(
        "action",
        choices=("list", "verify", "export"),
        help="list: images, time, size, whether all files are there; verify: read every byte; export: one plain safetensors "
        "file for each network, with whole tensors",
    )
    parser.add_argument("source", metavar="RUN|URI", help="a run's folder, a folder or URI of checkpoints, or one checkpoint")
    parser.add_argument("dst", metavar="DST", nargs="?", help="export: a new folder or URI")
    parser.add_argument("--checkpoint", type=int, metavar="IMAGES", help="export: which one (default: the newest whole one)")


def run(args: argparse.Namespace) -> None:
    """See `jobs.cli.Job`."""
    if (args.action == "export") != (args.dst is not None):
        wanted = "name the folder to write to: DST" if args.dst is None else f"leave out {args.dst}"
        raise ConfigError(f"{args.action}: {wanted}")
    if args.action == "export":
        return _export(args.source, args.dst, args.checkpoint)
    if args.checkpoint is not None:
        raise ConfigError(f"--checkpoint {args.checkpoint}: goes only with export; name the checkpoint's folder instead")
    _tell(args.source, read=args.action == "verify")
    return None


def _tell(source: str, *, read: bool) -> None:
    """A line for each checkpoint, newest first. Raises DataError if one is damaged, ConfigError if there is none."""
    from pipeline import storage
    from pipeline.checkpoint import format

    damaged, folders = 0, _folders(source)
    for folder in folders:
        name = folder.rpartition("/")[2]
        try:
            found = format.load(folder)
            fault = found.fault(read=read)
            size = sum(row.bytes for row in found.files.values())
            what = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(found.time))}  {size / 2**20:10,.1f} MiB  "
        except storage.NotFoundError:
            what, fault = "", "not committed: an attempt that was cut off, or is being written"
        except DataError as error:
            what, fault = "", str(error)
        damaged += bool(fault) and not fault.startswith("not committed")
        print(f"{name:17}  {what}{fault or ('every byte is right' if read else 'whole')}", flush=True)
    if not folders:
        raise ConfigError(f"{source} has no checkpoints: name a run's folder, or a folder or URI of checkpoints")
    if damaged:
        raise DataError(f"{source}: {damaged} of {len(folders)} checkpoints are damaged; training passes them over")


def _folders(source: str) -> list[str]:
    from pathlib import Path

    from pipeline import storage
    from pipeline.checkpoint import format
    from pipeline.runs.run_folder import load_run_config
    from pipeline.runs.trusted_places import kept_checkpoints

    if format.FOLDER.fullmatch(source.rstrip("/").rpartition("/")[2]):
        return [source.rstrip("/")]
    uri = kept_checkpoints(load_run_config(source)) if Path(source, "config.yaml").is_file() else source
    return [storage.join(uri, name) for name in format.folders(uri)]


def _export(source: str, dst: str, images: int | None) -> None:
    import safetensors.torch

    from pipeline import storage
    from pipeline.runs.run_folder import locate
    from pipeline.storage.ownership import refuse_foreign

    refuse_foreign(f"DST {dst}", dst, "name a new folder")
    found = locate(source, images)
    for part in sorted(found.parts):
        place = storage.join(dst, f"{part}.safetensors")
        data = safetensors.torch.save(found.tensors(part))
        storage.write_bytes(place, data)
        print(f"wrote {place}: {len(found.shapes[part])} tensors, {len(data) / 2**20:,.1f} MiB")
    storage.write_bytes(storage.join(dst, "state.json"), found.read("state.json"))
