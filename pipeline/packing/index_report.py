"""What a pass over shards found, in words: `index-report.json`, its lines on the terminal, and the refusal."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline import storage
from pipeline.data.manifest import Manifest
from pipeline.errors import ConfigError, DataError, UserError
from pipeline.packing.destination import REPORT, REPORT_FORMAT
from pipeline.packing.sample_rules import SampleFault, is_image
from pipeline.packing.tar_samples import Scan
from pipeline.wording import plural

_LISTED = 5  # faults of each kind on the terminal


@dataclass(frozen=True)
class Tars:
    """The tars to be indexed."""

    folder: str
    names: tuple[str, ...]
    absent: tuple[SampleFault, ...] = ()
    """Those that should be there, and are not or cannot be read."""
    beside: Mapping[str, int] = field(default_factory=dict)
    """What else is in the folder: how many files of each extension."""
    gaps: tuple[str, ...] = ()
    """Names that the numbers of the others leave out."""


def refusal(tars: Tars, faults: list[SampleFault], images: int, samples: int) -> UserError:
    """Return the error for faults that stop a pass, with the first of each kind as notes.

    `images` is the number of samples without a fault, `samples` of those with one.
    """
    kind = ConfigError if all(fault.error is ConfigError for fault in faults) else DataError
    if len(faults) == 1:
        advice = f": {faults[0].advice}" if faults[0].advice else ""
        error = kind(f"{faults[0].line(tars.folder)}{advice}{_or_skip(tars, faults, images, samples)}")
    else:
        text = f"{tars.folder} has {'' if images else 'no sample that can be used, but '}{', '.join(_counted(faults))}"
        error = kind(f"{text}: fix them as said above{_or_skip(tars, faults, images, samples)}")
        for alike in _by_kind(faults):
            error.add_note(f"{_counted(alike)[0]}{f': {alike[0].advice}' if alike[0].advice else ''}")
            for fault in alike[:_LISTED]:
                error.add_note(f"  {fault.line(tars.folder)}")
            if len(alike) > _LISTED:
                error.add_note(f"  ... and {len(alike) - _LISTED:,} more")
    return error


def _or_skip(tars: Tars, faults: list[SampleFault], images: int, samples: int) -> str:
    """Return what `--on-error skip` would cost; nothing where it would leave nothing."""
    if not images:
        return ""
    shards = sum(not fault.key for fault in faults)
    lost = [f"{len(faults) - shards:,} of {plural(images + samples, 'sample')}"] if len(faults) > shards else []
    lost += [f"{shards:,} of {plural(len(tars.names) + len(tars.absent), 'shard')}"] if shards else []
    return f", or add --on-error skip to leave out {' and '.join(lost)}"


def report(tars: Tars, manifest: Manifest, scans: list[Scan], faults: list[SampleFault]) -> dict[str, Any]:
    """Return what `index-report.json` holds: every tar, member and file beside the tars is in one of its counts."""
    passed_over = sum((one.passed_over for one in scans), Counter[str]())
    extensions = Counter(extension for one in scans for sample in one.samples for extension in sample.extensions)
    return {
        "format": REPORT_FORMAT,
        "images": manifest.samples,
        "shards": len(manifest.shards),
        "shards_without_samples": [one.name for one in scans if not one.samples],
        "numbers_without_a_tar": list(tars.gaps),
        "classes_without_images": [
            name for name, count in zip(manifest.classes, manifest.class_counts, strict=True) if not count
        ],
        "members": {
            "all": sum(one.total for one in scans),
            "of_indexed_samples": dict(extensions.most_common()),
            "of_samples_left_out": sum(fault.members for fault in faults if fault.key),
            "passed_over": dict(passed_over.most_common()),
        },
        "images_beside_that_of_their_sample": sum(
            sum(map(is_image, sample.extensions)) - 1 for one in scans for sample in one.samples if len(sample.extensions) > 1
        ),
        "files_beside_the_tars": dict(tars.beside),
        "left_out": {
            "samples": sum(bool(fault.key) for fault in faults),
            "shards": sum(not fault.key for fault in faults),
            "by_reason": _counted(faults),
        },
        "faults": [{"shard": fault.shard, "key": fault.key, "reason": fault.reason} for fault in faults],
    }


def summary(document: dict[str, Any], destination: str) -> list[str]:
    """Return the lines of the report for people: what was left out or passed over, and what is odd."""
    lines = []
    if by_reason := document["left_out"]["by_reason"]:
        lines.append(f"left out: {', '.join(by_reason)}; {storage.join(destination, REPORT)} lists them")
    for title, counts in (
        ("passed over in the tars", document["members"]["passed_over"]),
        ("passed over beside the tars", document["files_beside_the_tars"]),
    ):
        if counts:
            lines.append(f"{title}: {', '.join(f'{kind} ({count:,})' for kind, count in counts.items())}")
    if count := document["images_beside_that_of_their_sample"]:
        lines.append(f"passed over: {plural(count, 'further image')} of samples that have one (with another extension)")
    for names, what in (
        (document["shards_without_samples"], "without samples"),
        (document["numbers_without_a_tar"], "missing in the sequence of numbers"),
    ):
        if names:
            lines.append(f"{plural(len(names), 'shard')} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
    return lines


def _by_kind(faults: Iterable[SampleFault]) -> list[list[SampleFault]]:
    """Return the faults of each kind, the most frequent kind first."""
    kinds: dict[tuple[bool, str], list[SampleFault]] = defaultdict(list)
    for fault in faults:
        kinds[bool(fault.key), fault.kind].append(fault)
    return sorted(kinds.values(), key=len, reverse=True)


def _counted(faults: Iterable[SampleFault]) -> list[str]:
    """Return "2 samples without label", "1 damaged shard", ..., the most frequent first."""
    return [
        f"{plural(len(alike), 'sample')} {alike[0].kind}" if alike[0].key else plural(len(alike), f"{alike[0].kind} shard")
        for alike in _by_kind(faults)
    ]
