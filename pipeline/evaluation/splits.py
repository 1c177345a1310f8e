"""The real images that a generator is compared with: the splits of its run, or those that somebody names."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline import storage
from pipeline.data.loader import DataConfig
from pipeline.data.manifest import MANIFEST, Manifest
from pipeline.errors import ConfigError
from pipeline.generation.load import TrainedGenerator
from pipeline.runs.run_folder import load_run_config
from pipeline.runs.trusted_places import kept_data


class Split(NamedTuple):
    """Shards."""

    uri: str
    manifest: Manifest


def training_shards(model: str) -> str:
    """Those of the run in the folder `model`. Raises ConfigError if it is no run, or one of a mixture."""
    if not Path(model, "config.yaml").is_file():
        raise ConfigError(f"--train is missing: {model} is not the folder of a run, which would name its shards")
    data = kept_data(load_run_config(model))
    if data.mix:
        raise ConfigError(f"--train is missing: {model} mixes {', '.join(data.mix)}; name the shards to judge by")
    return data.uri


def held_out(train: str) -> str:
    """The split `test` beside the shards `train`. Raises ConfigError if there is none."""
    parent, _, split = train.rstrip("/").rpartition("/")
    test = storage.join(parent, "test") if parent else "test"
    if split == "test" or not storage.exists(storage.join(test, MANIFEST)):
        raise ConfigError(f"--test is missing: there is no split {test} beside {train}; name shards that were held out")
    return test


def check_same(trained: TrainedGenerator, splits: Mapping[str, Split]) -> None:
    """Raises ConfigError unless generator and shards speak of the same images."""
    for name, (uri, manifest) in splits.items():
        if len(manifest.classes) != len(trained.classes) or (trained.named and manifest.classes != trained.classes):
            raise ConfigError(f"--{name} {uri} has other classes than the run: name shards of the same {len(trained.classes)}")
        for key in ("resolution", "channels"):
            have, want = getattr(manifest, key), getattr(trained.config, key)
            larger = key == "resolution" and (have is None or have > want)  # cropped and resampled while it is read
            if have != want and not larger:
                raise ConfigError(
                    f"--{name} {uri} has {key} {have}, the run's images have {want}: name shards of the same form"
                )
    if len({split.manifest.fingerprint for split in splits.values()}) < len(splits):
        raise ConfigError("--test holds the images of --train: name shards that were held out from training")


def read_alike(model: str, uri: str, crop: int | None, resolution: int) -> DataConfig:
    """How to read the shards at `uri`: cropped as told, else as the run `model` did, and resampled."""
    if crop is None and Path(model, "config.yaml").is_file():
        crop = load_run_config(model).data.crop
    return DataConfig(uri=uri, crop=crop, resolution=resolution)
