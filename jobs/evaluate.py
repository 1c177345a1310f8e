"""`biggan evaluate`: class accuracy and Fréchet distance of a run's samples, by a judge that knows the real images."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.generators import TrainedGenerator
    from pipeline.index import Manifest

HELP = "class accuracy and Fréchet distance of a run's samples against real images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `jobs.cli.Job`."""
    parser.add_argument(
        "model", metavar="MODEL", help="a run's folder, or a folder or URI of checkpoints; the EMA generator is evaluated"
    )
    parser.add_argument("--checkpoint", metavar="IMAGES", help="which checkpoint (default: the newest)")
    parser.add_argument("--train", metavar="URI", help="shards that the judge learns from (default: the run's own)")
    parser.add_argument(
        "--test",
        metavar="URI",
        help="real images to compare with (default: the split `test` beside the training split)",
    )
    parser.add_argument("--crop", type=int, metavar="N", help="as data.crop (default: as the run did, or none)")
    parser.add_argument("--samples", type=int, default=10_000, metavar="N", help="classes in turn (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which latents (default: %(default)s)")
    parser.add_argument("--truncation", type=float, metavar="T", help="draw latents within -T..T (default: anywhere)")
    parser.add_argument(
        "--cache", metavar="URI", help="folder that keeps the judge; share it between runs (default: RUN/evaluation)"
    )
    parser.add_argument("--extractor", metavar="NAME", help="the judge's name in FID[NAME] (default: clf-HASH)")
    parser.add_argument("--json", metavar="OUT", help="also write the figures here (always: RUN/evaluation/IMAGES.json)")


def run(args: argparse.Namespace) -> None:
    """Train the judge or find it, judge, print, and write the figures."""
    if args.samples < 2:
        raise ConfigError(f"--samples {args.samples}: must be at least 2")
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed}: must be at least 0")
    if args.truncation is not None and not args.truncation > 0:
        raise ConfigError(f"--truncation {args.truncation}: must be above 0; leave it out for no truncation")
    if args.crop is not None and args.crop < 1:
        raise ConfigError(f"--crop {args.crop}: must be at least 1")
    if args.checkpoint is not None and not args.checkpoint.isdecimal():
        raise ConfigError(f"--checkpoint {args.checkpoint}: must be a number of images, as in the folder's name")

    from pipeline import storage
    from pipeline.checkpoint import EVALUATION, committed
    from pipeline.generators import load_generator
    from pipeline.index import load_manifest
    from pipeline.run import checkpoint_uri, load_run_config

    _leave_a_core()
    train = args.train or _training_shards(args.model)
    test = args.test or _test_beside(train)
    train_manifest, test_manifest = load_manifest(train), load_manifest(test)
    trained = load_generator(args.model, int(args.checkpoint) if args.checkpoint else None, args.truncation)
    _check_same(trained, {"--train": (train, train_manifest), "--test": (test, test_manifest)})

    figures = _evaluate(args, trained, (train, train_manifest), (test, test_manifest))
    print("\n".join(_table(figures)))
    document = (json.dumps(figures, indent=1, ensure_ascii=False) + "\n").encode()
    cut = "" if args.truncation is None else f"-truncation-{args.truncation:g}"
    own = storage.join(args.model, "evaluation", f"{trained.images:010d}{cut}.json")
    places = [own, args.json or own]
    if args.truncation is None and Path(args.model, "config.yaml").is_file():
        # For `checkpoint.keep_best`; a training that goes on may have removed the checkpoint meanwhile.
        beside = [c.uri for c in committed(checkpoint_uri(load_run_config(args.model))) if c.images == trained.images]
        places += [storage.join(uri, EVALUATION) for uri in beside[:1]]
    for place in dict.fromkeys(places):
        storage.write_bytes(place, document)
        print(f"figures: {place}")


def _leave_a_core() -> None:
    """To the threads that decode. OpenMP's threads wait for each other spinning: where one of two has to share its core,
    training the judge took six times as much CPU time, and longer than on one."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), max(1, len(os.sched_getaffinity(0)) - 1)))


def _training_shards(model: str) -> str:
    from pipeline.run import load_run_config

    if not Path(model, "config.yaml").is_file():
        raise ConfigError(f"--train is missing: {model} is not the folder of a run, which would name its shards")
    data = load_run_config(model).data
    if data.mix:
        raise ConfigError(f"--train is missing: {model} mixes {', '.join(data.mix)}; name the shards to judge by")
    return data.uri


def _test_beside(train: str) -> str:
    from pipeline import storage
    from pipeline.index import MANIFEST

    parent, _, split = train.rstrip("/").rpartition("/")
    test = storage.join(parent, "test") if parent else "test"
    if split == "test" or not storage.exists(storage.join(test, MANIFEST)):
        raise ConfigError(f"--test is missing: there is no split {test} beside {train}; name shards that were held out")
    return test


def _check_same(trained: "TrainedGenerator", splits: "dict[str, tuple[str, Manifest]]") -> None:
    """Raises ConfigError unless generator and shards speak of the same images."""
    for flag, (uri, manifest) in splits.items():
        if len(manifest.classes) != len(trained.classes) or (trained.named and manifest.classes != trained.classes):
            raise ConfigError(f"{flag} {uri} has other classes than the run: name shards of the same {len(trained.classes)}")
        for key in ("resolution", "channels"):
            have, want = getattr(manifest, key), getattr(trained.config, key)
            larger = key == "resolution" and (have is None or have > want)  # cropped and resampled while it is read
            if have != want and not larger:
                raise ConfigError(f"{flag} {uri} has {key} {have}, the run's images have {want}: name shards of the same form")
    if len({manifest.fingerprint for _, manifest in splits.values()}) < len(splits):
        raise ConfigError("--test holds the images of --train: name shards that were held out from training")


def _evaluate(
    args: argparse.Namespace, trained: "TrainedGenerator", train: "tuple[str, Manifest]", test: "tuple[str, Manifest]"
) -> dict[str, Any]:
    """All figures, ready for JSON."""
    from pipeline import storage
    from pipeline.classifier import obtain_judge, real_batches
    from pipeline.evaluation import BATCH, frechet_distance, judge, sample_batches
    from pipeline.run import load_run_config
    from pipeline.stream import DataConfig

    cache = args.cache or storage.join(args.model, "evaluation")
    crop, side = args.crop, trained.config.resolution
    if crop is None and Path(args.model, "config.yaml").is_file():
        crop = load_run_config(args.model).data.crop
    expert = obtain_judge(
        DataConfig(train[0], crop=crop, resolution=side), train[1], cache, lambda line: print(line, flush=True)
    )
    judged = {}
    for name, (uri, manifest) in {"test": test, "train": train}.items():
        batches = real_batches(
            DataConfig(uri, crop=crop, resolution=side), manifest, min(args.samples, manifest.samples), BATCH
        )
        judged[name] = judge(expert.classifier, batches)
    generator = trained.generator.to(next(expert.classifier.parameters()).device)
    labels = {"num_classes": len(trained.classes), "count": args.samples}
    drawn = sample_batches(generator, **labels, seed=args.seed, truncation=args.truncation)
    judged["samples"] = judge(expert.classifier, drawn)

    by_class = {name: part.class_accuracy(trained.classes) for name, part in judged.items()}
    worst = min(by_class["samples"], key=by_class["samples"].__getitem__)
    distance = {name: frechet_distance(judged["test"].features, judged[name].features) for name in ("train", "samples")}
    fid = f"FID[{args.extractor or f'clf-{expert.key[:8]}'}]"
    return {
        "run": str(args.model),
        "images": trained.images,
        "weights_sha256": trained.weights_sha256,
        "samples": args.samples,
        "seed": args.seed,
        "truncation": args.truncation,
        "accuracy": judged["samples"].accuracy,
        "class_accuracy": by_class["samples"],
        "worst_class": worst,
        fid: distance["samples"],
        "real": {
            "test_images": len(judged["test"].labels),
            "test_accuracy": judged["test"].accuracy,
            "test_class_accuracy": by_class["test"],
            "training_images": len(judged["train"].labels),
            f"{fid} of training images": distance["train"],
        },
        "judge": {
            "file": expert.place,
            "key": expert.key,
            "seconds": expert.seconds,
            "train": train[0],
            "test": test[0],
        },
    }


def _table(figures: dict[str, Any]) -> list[str]:
    """The figures for a person, as lines."""
    real = figures["real"]
    fid = next(key for key in figures if key.startswith("FID["))
    cut = "no truncation" if figures["truncation"] is None else f"truncation {figures['truncation']:g}"
    width = max(map(len, figures["class_accuracy"]))
    return [
        f"{figures['run']} at {figures['images']:,} images, EMA, seed {figures['seed']}, {cut}",
        "",
        f"{'':28}  accuracy  {fid} to {real['test_images']:,} real test images",
        f"{'real test images':28}  {real['test_accuracy']:8.1%}",
        f"{'real training images':28}  {'(seen)':>8}  {real[fid + ' of training images']:.2f}",
        f"{figures['samples']:,} samples".ljust(28) + f"  {figures['accuracy']:8.1%}  {figures[fid]:.2f}",
        "",
        f"{'class':{width}}  real test  samples",
        *(
            f"{name:{width}}  {real['test_class_accuracy'].get(name, float('nan')):9.1%}  {share:7.1%}"
            + ("  <- worst" if name == figures["worst_class"] else "")
            for name, share in figures["class_accuracy"].items()
        ),
    ]
