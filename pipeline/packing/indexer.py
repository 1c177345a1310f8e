"""Index and manifest for WebDataset shards that another program wrote: one pass over each tar, many side by side.

Nothing is written before all shards have been read, and the manifest comes last. What cannot be used stops the pass at its
end, with everything that is wrong; or it is left out, and `index-report.json` lists it.
"""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import google_crc32c
import numpy as np

from pipeline import storage
from pipeline.data.labels import Classes, number_labels
from pipeline.data.manifest import INDEXED, MANIFEST, Manifest, Shard, dump_manifest
from pipeline.data.shard_index import ROW, dump_index, index_name
from pipeline.errors import ConfigError, DataError
from pipeline.packing.destination import REPORT, address, check_destination
from pipeline.packing.index_report import Tars, refusal, report
from pipeline.packing.sample_rules import BAD_LABEL, Rules, SampleFault
from pipeline.packing.sources.layout import escaped
from pipeline.packing.tar_samples import Progress, Scan, scan
from pipeline.storage import trusted_stores

_HOPELESS = 100  # samples that the rules do not fit, before any that they do


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
