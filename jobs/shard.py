"""`biggan shard SRC DST`: images to WebDataset shards with an index."""

import argparse
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.wording import hide_secrets, plural

if TYPE_CHECKING:
    from pipeline.data.manifest import Manifest
    from pipeline.packing.encode import PackConfig
    from pipeline.packing.sources.base import Source

HELP = "pack images into WebDataset shards with an index"

_RESOLUTIONS = (8, 16, 32, 64, 128, 256, 512)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument(
        "src",
        metavar="SRC",
        help="a folder with one folder per class (or with train/ and test/ of such), a zip of one, also with StyleGAN's "
        "dataset.json; a flat folder (one class); IDX files; CIFAR-10 or -100, binary version; ImageNet's "
        "ILSVRC2012_img_train.tar and _val.tar with the devkit, in one folder; parquet files; shards to pack again; "
        "`fashion-mnist` (found or downloaded), or `fashion-mnist:PATH` (its four files or Debian's .deb). "
        "Archives are read where they lie, nothing is unpacked",
    )
    parser.add_argument(
        "dst",
        metavar="DST",
        help="where to: a path, s3://... or another URI; a source with splits goes to DST/train, ...",
    )
    parser.add_argument("--split", help="pack only this split, such as train or test; the others are not looked at")
    parser.add_argument(
        "--label",
        choices=("name", "none"),
        help="name: each folder is a class, also those called train or test; none: one class of all images (default: by "
        "what is there; a source that can be read in two ways is refused)",
    )
    parser.add_argument(
        "--resolution",
        type=int,
        metavar="N",
        help="N x N pixels; default where all images have one known size (IDX, CIFAR): the next power of two",
    )
    parser.add_argument(
        "--fit",
        choices=("crop", "pad"),
        help="crop: centred square, resampled (default); pad: black borders, pixels untouched (default for IDX and CIFAR)",
    )
    parser.add_argument("--filter", choices=("lanczos", "bicubic", "box"), help="that resamples (default lanczos)")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="instead of --resolution: store every JPEG, PNG and WebP byte for byte; images are cropped when they are read",
    )
    parser.add_argument(
        "--format", choices=("png", "jpg", "webp"), default="png", help="of images that are encoded anew (default png)"
    )
    parser.add_argument("--quality", type=int, metavar="Q", help="1 to 100, of jpg (4:4:4) and webp (default 95)")
    parser.add_argument("--shard-size", type=int, default=64, metavar="MB", help="size of a shard in MiB (default 64)")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that decode and encode (default: one per core)")
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at an image that cannot be packed: stop and name it (default), or skip it and list it in DST/report.json",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an earlier pack at DST, and only its files; without it, the same command continues after a kill",
    )


def run(args: argparse.Namespace) -> int | None:
    """See `jobs.cli.Job`."""
    from pipeline import storage
    from pipeline.packing.pack import pack, packed
    from pipeline.packing.sources.detect import open_source
    from pipeline.progress import progress
    from pipeline.storage.addresses import is_web

    _check(args)
    if is_web(args.dst):
        raise ConfigError(f"DST {hide_secrets(args.dst)} cannot be written, as HTTP is read only: name another DST")
    sources = open_source(args.src, print, args.split, args.label)
    plans = []
    for source in sources:
        config = _config(args, source)
        uri = storage.join(args.dst, source.split) if source.split else args.dst
        _check_apart(storage.join(args.src, source.split) if source.split else args.src, uri)
        done = packed(source, uri, config, args.overwrite)  # for all splits before any is written
        plans.append((source, uri, config, done))
    for source, uri, config, done in plans:
        if done:
            print(f"{uri}: already packed, {plural(done.samples, 'image')} ({done.fingerprint})")
            continue
        with progress(f"packing {source.split or 'images'}", len(source.labels), resumes=True) as update:
            manifest = pack(source, uri, config, update, resume=not args.overwrite)
        _say(uri, manifest)
    return None


def _check_apart(src: str, uri: str) -> None:
    """Raise ConfigError if shards are packed again to where they are: they would be removed before they are read."""
    from pipeline import storage
    from pipeline.data.manifest import MANIFEST

    def place(given: str) -> str:
        path = storage.local_path(given)
        return str(path.resolve()) if path else given.rstrip("/")

    if place(src) == place(uri) and MANIFEST in storage.names(uri):
        raise ConfigError(f"SRC and DST are the same folder, {src}: name another DST")


def _say(uri: str, manifest: "Manifest") -> None:
    from pipeline.packing.progress import read_report, summary

    size = sum(shard.bytes for shard in manifest.shards) / 2**20
    side = f"{manifest.resolution} x {manifest.resolution}" if manifest.resolution else "of any size"
    print(
        f"{uri}: {plural(manifest.samples, 'image')}, {'grey' if manifest.channels == 1 else 'RGB'} {side}, "
        f"{plural(len(manifest.classes), 'class', 'classes')}, {plural(len(manifest.shards), 'shard')}, "
        f"{size:,.1f} MiB ({manifest.fingerprint})"
    )
    for line in summary(read_report(uri), uri):
        print(f"  {line}")


def _check(args: argparse.Namespace) -> None:
    if args.shard_size < 1:
        raise ConfigError(f"--shard-size {args.shard_size}: at least 1 (MiB)")
    if args.workers is not None and args.workers < 1:
        raise ConfigError(f"--workers {args.workers}: at least 1")
    if args.keep and (args.resolution is not None or args.fit or args.filter):
        raise ConfigError("--keep stores images as they are: leave out --resolution, --fit and --filter, or --keep")
    if args.quality is not None and args.format == "png":
        raise ConfigError("--quality: png has none; add --format jpg or --format webp")
    if args.quality is not None and not 1 <= args.quality <= 100:
        raise ConfigError(f"--quality {args.quality}: from 1 to 100")


def _config(args: argparse.Namespace, source: "Source") -> "PackConfig":
    from pipeline.packing.encode import PackConfig

    resolution = None if args.keep else _resolution(args, source)
    unscaled = source.side is not None and resolution is not None and source.side <= resolution
    return PackConfig(
        resolution=resolution,
        fit=args.fit or ("pad" if unscaled else "crop"),
        filter=args.filter or "lanczos",
        form=args.format,
        quality=args.quality or 95,
        shard_bytes=args.shard_size << 20,
        workers=args.workers or 0,
        skip_bad=args.on_error == "skip",
    )


def _resolution(args: argparse.Namespace, source: "Source") -> int:
    chosen: int | None = args.resolution
    if chosen is None and source.side is not None:
        chosen = next((n for n in _RESOLUTIONS if n >= source.side), None)
    if chosen is None:
        raise ConfigError(f"--resolution is missing: {args.src} has images of any size; try --resolution 64, or --keep")
    if chosen not in _RESOLUTIONS:
        raise ConfigError(f"--resolution {chosen}: choose one of {', '.join(map(str, _RESOLUTIONS))}")
    return chosen
