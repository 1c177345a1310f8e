"""Index and manifest for WebDataset shards that another program wrote: one pass over each tar, many side by side.

Nothing is written before all shards have been read, and the manifest comes last. What cannot be used stops the pass at its
end, with everything that is wrong; or it is left out, and `index-report.json` lists it.
"""

import json
import re
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import google_crc32c
import numpy as np
from braceexpand import braceexpand

from pipeline import storage
from pipeline.data.labels import Classes, number_labels
from pipeline.data.manifest import COMPRESSED, INDEXED, MANIFEST, Manifest, Shard, dump_manifest
from pipeline.data.shard_index import ROW, dump_index, index_name
from pipeline.errors import ConfigError, DataError
from pipeline.packing.destination import REPORT, address, check_destination
from pipeline.packing.index_report import Tars, refusal, report
from pipeline.packing.sample_rules import BAD_LABEL, Rules, SampleFault
from pipeline.packing.sources.layout import SPLITS, escaped, split_within
from pipeline.packing.tar_samples import Progress, Scan, scan
from pipeline.storage import trusted_stores
from pipeline.storage.addresses import file_name, split_query
from pipeline.wording import command, plural

_HOPELESS = 100  # samples that the rules do not fit, before any that they do
_MOST_SHARDS = 1_000_000  # that a name may speak of: each that is not there is listed
_NUMBERED = re.compile(r"(.*?)(\d+)((?:-of-(\d+))?\.tar)", re.IGNORECASE)


def index_shards(
    tars: Tars, destination: str, rules: Rules, threads: int, progress: Progress
) -> tuple[Manifest, dict[str, Any]]:
    """Index the tars; write indexes, report and manifest to `destination`.

    Returns the manifest and what is in `index-report.json`. `progress` is told samples and bytes as they are read. Raises
    ConfigError or DataError for what cannot be used (its notes list each fault), StorageError where a store fails; then
    nothing has been written.
    """
    for text in (*address(tars.folder, destination), *tars.names):
        if escaped(text) != text:
            raise ConfigError(f"{escaped(text)} is not UTF-8, and a manifest cannot name it: rename it")
    trusted_stores.note("read", [tars.folder, destination])
    check_destination(destination, tars.names, threads)
    scans = _scan_all(tars, rules, threads, progress)
    counts = Counter(sample.label for one in scans for sample in one.samples)
    if rules.label == "none":
        classes = Classes(rules.classes or ("all",), {"0": 0}, {})
    else:
        classes = number_labels(counts, rules.classes, rules.renumber)
    good = [replace(one, samples=[sample for sample in one.samples if sample.label in classes.numbers]) for one in scans]
    faults = [*tars.absent, *(fault for one in scans for fault in (*one.faults, *_wrong_labels(one, classes)))]
    images = sum(len(one.samples) for one in good)
    if stopping := [fault for fault in faults if not rules.skips(fault)]:
        raise refusal(tars, stopping, images, sum(bool(fault.key) for fault in faults))
    if not images:
        raise refusal(tars, faults, 0, 0) if faults else DataError(f"the shards at {tars.folder} hold no sample with an image")
    left_out = {fault.shard for fault in faults if not fault.key}
    good = [one for one in good if one.name not in left_out]
    manifest = _write(tars, destination, good, classes)
    document = report(tars, manifest, good, faults)
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    storage.write_bytes(storage.join(destination, REPORT), text.encode())
    storage.write_bytes(storage.join(destination, MANIFEST), dump_manifest(manifest))
    return manifest, document


def _scan_all(tars: Tars, rules: Rules, threads: int, progress: Progress) -> list[Scan]:
    """Read all tars. Raises ConfigError early where the rules fit none of the first samples: that is no fault of theirs."""
    some, stop = threading.Event(), threading.Event()

    def misfit(fault: SampleFault) -> bool:
        return fault.error is ConfigError and not rules.skips(fault)

    def hopeless(found: Scan) -> bool:
        if found.samples:
            some.set()
        elif len(found.faults) == _HOPELESS and not some.is_set() and all(map(misfit, found.faults)):
            stop.set()
        return stop.is_set()

    def one(name: str) -> Scan:
        return Scan(name=name) if stop.is_set() else scan(tars.folder, name, rules, progress, hopeless)

    with ThreadPoolExecutor(threads, "scan") as pool:
        waiting = [pool.submit(one, name) for name in tars.names]
        try:
            scans = [future.result() for future in waiting]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if stop.is_set():
        fault = next(found.faults[0] for found in scans if len(found.faults) == _HOPELESS)
        raise ConfigError(f"{fault.line(tars.folder)}, and so it is with the first {_HOPELESS} samples: {fault.advice}")
    return scans


def _wrong_labels(found: Scan, classes: Classes) -> list[SampleFault]:
    faults = []
    for sample in found.samples:
        if wrong := classes.wrong.get(sample.label):
            reason = f"has the label {sample.label[:60]!r}, {wrong[0]}"
            members = len(sample.extensions)
            faults.append(
                SampleFault(
                    shard=found.name,
                    key=sample.key,
                    kind=BAD_LABEL,
                    reason=reason,
                    advice=wrong[1],
                    error=ConfigError,
                    members=members,
                )
            )
    return faults


def _write(tars: Tars, destination: str, scans: list[Scan], classes: Classes) -> Manifest:
    """Write the indexes; return the manifest, which is not written."""
    counts = np.zeros(len(classes.names), np.int64)
    shards = []
    for one in scans:
        labels = [classes.numbers[sample.label] for sample in one.samples]
        counts += np.bincount(labels, minlength=len(counts))
        rows = np.array([(*sample[:3], label) for sample, label in zip(one.samples, labels, strict=True)], ROW)
        index = dump_index(rows, one.bytes)
        shards.append(Shard(one.name, len(rows), one.bytes, one.crc32c, google_crc32c.value(index)))
        storage.write_bytes(storage.join(destination, index_name(one.name)), index)
    sizes = {sample.size for one in scans for sample in one.samples}
    width, height = next(iter(sizes))
    place, from_here = address(tars.folder, destination)
    return Manifest(
        shards=tuple(shards),
        classes=classes.names,
        class_counts=tuple(counts.tolist()),
        resolution=width if len(sizes) == 1 and width == height > 0 else None,
        channels=1 if all(sample.grey for one in scans for sample in one.samples) else 3,
        tars=place,
        tars_from_here=from_here,
        source=INDEXED,
    )


def find_shards(uri: str) -> Tars:
    """Return the tars in a folder, of a brace specification, or the one that is named.

    Raises ConfigError where there is none, for several splits in one folder, and for what has no places to jump to: pipes
    and compressed tars.
    """
    if uri.startswith("pipe:"):
        raise ConfigError(f"{uri}: a command's output cannot be read from the middle; name the URI itself (s3://, gs://, ...)")
    named, _ = split_query(uri)
    if named.endswith(COMPRESSED):
        raise ConfigError(f"{uri} is compressed, and has no places to jump to: unpack it first (gunzip)")
    if "{" in named or named.endswith(".tar"):
        return _named(uri)
    names = storage.names(uri)
    path = storage.local_path(uri)
    folders = [name for name in names if path and (path / name).is_dir()]
    files = [name for name in names if name not in set(folders)]
    tars = [name for name in files if name.lower().endswith(".tar")]
    packed = [name for name in files if (".tar." in name and name.endswith(COMPRESSED)) or name.endswith(".tgz")]
    if not tars:
        hint = f"{packed[0]} is compressed: unpack it first (gunzip)" if packed else "name a folder of .tar files"
        places = [storage.join(uri, name) for name in folders]
        if below := [place for place in places if any(name.lower().endswith(".tar") for name in storage.names(place))]:
            hint = f"the tars are in {plural(len(below), 'folder')} below it: index each, as in {command('index', below[0])}"
        raise ConfigError(f"no shards at {uri}: {hint}")
    _refuse_splits(uri, tars)
    ours = {MANIFEST, REPORT, *map(index_name, tars), *tars, *packed}
    beside = Counter(_extension(name) for name in files if name not in ours)
    if folders:
        beside["folders"] = len(folders)
    absent, gaps = _gaps(tars)
    faults = [_missing(name) for name in absent]
    faults += [
        SampleFault(
            shard=name, key="", kind="compressed", reason="is compressed", advice="unpack it first (gunzip)", error=ConfigError
        )
        for name in packed
    ]
    return Tars(uri.rstrip("/") or "/", tuple(tars), tuple(faults), dict(sorted(beside.items())), tuple(gaps))


def _named(uri: str) -> Tars:
    path, query = split_query(uri)
    folder = path.partition("{")[0].rpartition("/")[0]
    names = list(dict.fromkeys(file_name(place[len(folder) :].lstrip("/"), uri) for place in braceexpand(path)))
    folder = folder + query or ("/" if uri.startswith("/") else ".")
    there = {name: storage.exists(storage.join(folder, name)) for name in names}
    missing = [name for name in names if not there[name]]
    if len(missing) == len(names):
        which = f"there is no {names[0]}" if len(names) == 1 else f"none of the {len(names):,} shards is there"
        raise ConfigError(f"{uri}: {which} in {folder}: check the folder and the name")
    return Tars(folder, tuple(name for name in names if there[name]), tuple(map(_missing, missing)))


def _missing(name: str) -> SampleFault:
    return SampleFault(
        shard=name,
        key="",
        kind="missing",
        reason="is not there",
        advice="restore it, or name only the tars that are there",
        error=ConfigError,
    )


def _extension(name: str) -> str:
    stem, dot, extension = name.rpartition(".")
    return f".{extension.lower()}" if stem and dot else "no extension"


def _gaps(names: list[str]) -> tuple[list[str], list[str]]:
    """Return (names that NAME-00000-of-00003.tar implies and that are not there, those that gaps in other numbers suggest)."""
    groups: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            groups[match[1], match[3], len(match[2])].add(int(match[2]))
    absent: list[str] = []
    gaps: list[str] = []
    for (before, after, width), numbers in groups.items():
        of = re.search(r"-of-(\d+)", after)
        if of and int(of[1]) > _MOST_SHARDS:
            raise ConfigError(f"{before}{min(numbers):0{width}d}{after} is one of {int(of[1]):,} tars by its name: rename it")
        expected = range(int(of[1])) if of else range(min(numbers), max(numbers) + 1)
        if of or len(expected) <= 2 * len(numbers):  # else they are dates, or other names
            missing = [f"{before}{number:0{width}d}{after}" for number in expected if number not in numbers]
            (absent if of else gaps).extend(missing)
    return absent, gaps


def _refuse_splits(uri: str, names: list[str]) -> None:
    """Raise ConfigError where the names of the tars are those of several splits."""
    splits: dict[str, list[str]] = defaultdict(list)
    for name in names:
        split = split_within(re.sub(r"\.tar$", "", name, flags=re.IGNORECASE))
        splits[split if split in SPLITS else "no split"].append(name)
    if len(splits) > 1:
        kinds = ", ".join(f"{split} ({found[0]})" for split, found in sorted(splits.items()))
        first = next(found for split, found in splits.items() if split != "no split")
        one = command("index", storage.join(uri, _braces(first)), "--out", "DIR")
        raise ConfigError(f"{uri} has tars of several splits, {kinds}: index each by its names, as in {one}")


def _braces(names: list[str]) -> str:
    """Return one name, or a brace expression that stands for all."""
    parts = [_NUMBERED.fullmatch(name) for name in names]
    numbers = [part[2] for part in parts if part]
    ends = {(part[1], part[3]) for part in parts if part}
    alike = len(names) > 1 and len(numbers) == len(names) and len(ends) == 1
    if alike and len(names) == int(numbers[-1]) - int(numbers[0]) + 1:
        before, after = ends.pop()
        return f"{before}{{{numbers[0]}..{numbers[-1]}}}{after}"
    return names[0] if len(names) == 1 else f"{{{','.join(names)}}}"
