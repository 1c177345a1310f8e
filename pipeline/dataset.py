"""The data of a run as one set: the shards at `data.uri`, or several sets that are mixed by weight.

A mixture is a manifest whose shards are those of its parts, one part after the other, with one list of classes for all.
"""

from dataclasses import replace

from pipeline.errors import ConfigError
from pipeline.index import Manifest, Part, load_manifest
from pipeline.stream import DataConfig


def load_data(config: DataConfig) -> Manifest:
    """What `config.uri` or `config.mix` holds.

    Raises ConfigError where no shards are, or if parts of a mixture have images of other forms; DataError if one is damaged.
    """
    if not config.mix:
        return load_manifest(config.uri)
    manifests = {name: load_manifest(part.uri) for name, part in config.mix.items()}
    (first_name, first), *others = manifests.items()
    for name, manifest in others:
        if manifest.channels != first.channels:
            raise ConfigError(
                f"data.mix.{name} has {manifest.channels} channels and data.mix.{first_name} {first.channels}: pack one anew"
            )
    # By name, in the order in which they first appear; a class that several parts have is one.
    classes = list(dict.fromkeys(name for manifest in manifests.values() for name in manifest.classes))
    counts = [0] * len(classes)
    parts = []
    for name, manifest in manifests.items():
        labels = tuple(classes.index(c) for c in manifest.classes)
        for label, count in zip(labels, manifest.class_counts, strict=True):
            counts[label] += count
        given = config.mix[name]
        parts.append(Part(given.uri, manifest.tars or given.uri, len(manifest.shards), given.weight, labels, manifest.source))
    sizes = {manifest.resolution for manifest in manifests.values()}
    return replace(
        first,
        shards=tuple(shard for manifest in manifests.values() for shard in manifest.shards),
        classes=tuple(classes),
        class_counts=tuple(counts),
        resolution=sizes.pop() if len(sizes) == 1 else None,
        tars="",
        source="",
        parts=tuple(parts),
    )
