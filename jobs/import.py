"""`biggan import SRC DST`: weights of BigGAN-PyTorch, PyTorch-StudioGAN or Hugging Face's BigGAN-deep become a checkpoint."""

import argparse
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.checkpoint.importers.convert import Imported

HELP = "turn a checkpoint of BigGAN-PyTorch, PyTorch-StudioGAN or pytorch-pretrained-BigGAN into one of ours"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument(
        "src",
        metavar="SRC",
        help="the folder (a path or URI) with G.pth, G_ema.pth, D.pth; with model=G-best-weights-step=N.pth; or with "
        "config.json and pytorch_model.bin. Nothing in these files is run",
    )
    parser.add_argument("dst", metavar="DST", help="where the checkpoint goes: an empty or new folder, a path or URI")
    parser.add_argument(
        "--name-suffix",
        metavar="S",
        help="which of several: best0, copy1, ... (BigGAN-PyTorch; default: none), best or current (StudioGAN; default: best)",
    )
    parser.add_argument("--num-classes", type=int, metavar="N", help="refuse a source with another number of classes")
    parser.add_argument("--bn-eps", type=float, metavar="E", help="its batch norm's epsilon, if not its project's default")
    parser.add_argument("--sn-eps", type=float, metavar="E", help="its spectral norm's epsilon, likewise")
    parser.add_argument("--generator-only", action="store_true", help="leave out D, such as one that does not fit")


def run(args: argparse.Namespace) -> None:
    """See `jobs.cli.Job`."""
    from pipeline.checkpoint.importers import detect
    from pipeline.checkpoint.importers.convert import Options

    for flag, value in (("--num-classes", args.num_classes), ("--bn-eps", args.bn_eps), ("--sn-eps", args.sn_eps)):
        if value is not None and not value > 0:
            raise ConfigError(f"{flag} {value}: must be above 0; leave it out for the source's own")
    options = Options(args.name_suffix, args.num_classes, args.bn_eps, args.sn_eps, args.generator_only)
    detect.check_empty(args.dst)
    imported = detect.read(args.src, options, lambda line: print(line, flush=True))
    for line in _told(imported):
        print(line)
    print(f"writing {args.dst}", flush=True)
    saved = detect.save(imported, args.dst)
    size = sum(file.bytes for file in saved.files.values()) / 2**20
    print(f"wrote {saved.uri}: {', '.join(sorted(saved.files))}; {size:,.1f} MiB")
    print(f"next: biggan sample {args.dst} samples.png")
    print(f"      biggan train CONFIG init={args.dst}")


def _told(imported: "Imported") -> list[str]:
    """What was recognised, line by line."""
    from pipeline.checkpoint.importers.convert import is_parameter

    config = imported.config
    parts = {"G": imported.generator, "D": imported.discriminator or {}}
    counts = {which: sum(t.numel() for name, t in part.items() if is_parameter(name)) for which, part in parts.items()}
    averaged = "the averaged and the plain G" if imported.ema is not imported.generator else "one G, taken for both"
    return [
        f"recognised: {imported.source['format']}, {config.generator}, {config.resolution} px, ch {config.ch}, "
        f"{config.num_classes} classes, z {config.z_dim}; {averaged}",
        f"parameters: G {counts['G']:,}, " + (f"D {counts['D']:,} ({config.discriminator})" if counts["D"] else "no D"),
        f"Adam's moments: {' and '.join(role for role, m in imported.optimizers.items() if m) or 'none'}; "
        f"batch-norm statistics: {len(imported.statistics.get('truncations', ())) or 'none'}; "
        f"{imported.progress.images:,} images, {imported.progress.g_steps:,} G steps",
        *(f"note: {note}" for note in imported.notes),
    ]
