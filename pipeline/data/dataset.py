"""The data of a run as one set: the shards at `data.uri`, or several sets that are mixed by weight.

A mixture is a manifest whose shards are those of its parts, one part after the other, with one list of classes for all.
"""

from collections import Counter
from dataclasses import replace

from pipeline.data.loader import DataConfig
from pipeline.data.manifest import Manifest, Part, load_manifest
from pipeline.errors import ConfigError
from pipeline.wording import plural


def load_data(config: DataConfig) -> Manifest:
    """What `config.uri` or `config.mix` holds.

    Raises ConfigError where no shards are, or if parts of a mixture have images of other forms or classes that cannot be told
    apart; DataError if one is damaged.
    """
    if not config.mix:
        return load_manifest(config.uri, config.allow)
    manifests = {name: load_manifest(part.uri, config.allow) for name, part in config.mix.items()}
    (first_name, first), *others = manifests.items()
    for name, manifest in others:
        if manifest.channels != first.channels:
            raise ConfigError(
                f"data.mix.{name} has {manifest.channels} channels and data.mix.{first_name} {first.channels}: pack one anew"
            )
    # By name, in the order in which they first appear; a class that several parts have is one.
    named = {name: _numbered(manifest.classes) for name, manifest in manifests.items()}
    _refuse_unclear(named)
    classes = list(dict.fromkeys(one for ones in named.values() for one in ones))
    place = {one: label for label, one in enumerate(classes)}
    counts = [0] * len(classes)
    parts = []
    for name, manifest in manifests.items():
        labels = tuple(place[one] for one in named[name])
        for label, count in zip(labels, manifest.class_counts, strict=True):
            counts[label] += count
        given = config.mix[name]
        parts.append(
            Part(
                uri=given.uri,
                tars=manifest.tars or given.uri,
                shards=len(manifest.shards),
                weight=given.weight,
                labels=labels,
                source=manifest.source,
            )
        )
    sizes = {manifest.resolution for manifest in manifests.values()}
    return replace(
        first,
        shards=tuple(shard for manifest in manifests.values() for shard in manifest.shards),
        classes=tuple(name for name, _ in classes),
        class_counts=tuple(counts),
        resolution=sizes.pop() if len(sizes) == 1 else None,
        tars="",
        source="",
        parts=tuple(parts),
    )


def _numbered(classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """Return each name with how often it came before: two classes of one name in a set stay two (ImageNet's cranes)."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in classes:
        numbered.append((name, seen[name]))
        seen[name] += 1
    return numbered


def _refuse_unclear(named: dict[str, list[tuple[str, int]]]) -> None:
    """Raise ConfigError where sets have a class of one name, one of them several times and others another number of times."""
    for name in sorted({name for ones in named.values() for name, before in ones if before}):
        counts = Counter({part: sum(other == name for other, _ in ones) for part, ones in named.items()})
        if len(set((+counts).values())) > 1:
            has = ", ".join(f"data.mix.{part} has {plural(count, 'class', 'classes')}" for part, count in (+counts).items())
            raise ConfigError(f"{has} of the name {name}, and which are the same is not clear: give each class its own name")
