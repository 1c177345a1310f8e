"""Images in one folder per class, on the disk or in a zip: with or without splits, class folders or labels in a file.

A tree is recognised as a whole, or refused with both readings named: one name never switches the reading in silence.
"""

import hashlib
import re
import shlex
from collections import Counter

import numpy as np

from pipeline.errors import ConfigError
from pipeline.packing.sources.base import Ints, Source, same_classes
from pipeline.packing.sources.files import LABELS, Files
from pipeline.packing.sources.layout import said, split_name, split_order, split_within
from pipeline.packing.sources.stylegan_labels import read_labels
from pipeline.wording import command, plural

ALL = ("all",)
"""The class of a set without classes."""
_LABELLED = f"labels of {LABELS}"


def open_tree(files: Files, split: str | None = None, label: str | None = None) -> list[Source]:
    """Return the splits in a tree of images; only `split`, if one is named.

    `label` is `name` (each top folder is a class, whatever its name), `none` (one class of all) or None (by what is there).
    Raises ConfigError for a tree without images, and for one that can be read in two ways.
    """
    place, holds = files.place, said(files.left_over())
    if not files.paths:
        raise ConfigError(
            f"SRC {place} has no images" + (f"; it holds {holds}" if holds else "") + ": name a folder of class folders"
        )
    tops = sorted({path.partition("/")[0] for path in files.paths if "/" in path})
    flat = {path.partition("/")[0] for path in files.paths if path.count("/") == 1}
    splits = {} if label == "name" and split is None else _splits(place, tops, flat)
    if not splits:
        if split is not None:
            raise ConfigError(f"--split {split}: {place} has no splits")
        return [_set(files, "", "", label, files.left_over())]
    wanted = split_name(split or "") or split
    if split is not None and wanted not in splits:
        raise ConfigError(f"--split {split}: {place} has {', '.join(splits)}; name one of these")
    if split is None:
        _only_splits(files, tops, splits, label)
    chosen = {name: f"{top}/" for name, top in splits.items() if wanted in (None, name)}
    outside = [one for one in files.left_over() if not one[0].startswith(tuple(chosen.values()))]
    outside += [(path, "image outside the split") for path in files.paths if not path.startswith(tuple(chosen.values()))]
    bare = {folder for folder in files.folders if "/" not in folder} - set(tops)
    outside += [(folder, "folder without images") for folder in sorted(bare)]
    sources = [_set(files, name, prefix, label, files.left_over(prefix) + outside) for name, prefix in chosen.items()]
    return same_classes(place, sources, numbered=all(source.layout.startswith(_LABELLED) for source in sources))


def _splits(place: str, tops: list[str], flat: set[str]) -> dict[str, str]:
    """The folder of each split, in the order of splits; none where no folder is one.

    A longer name (`seg_train`) counts where others speak of other splits, and where all do or it holds class folders.
    """
    exact = {top: name for top in tops if (name := split_name(top))}
    longer = {top: name for top in tops if (name := split_within(top))}
    if len(set(longer.values())) < 2:
        longer = {}
    elif len(longer) < len(tops):
        longer = {top: name for top, name in longer.items() if top not in flat}
        longer = longer if len(set(longer.values())) > 1 else {}
    named = {top: name for top, name in longer.items() if name not in exact.values()} | exact
    twice = [name for name, count in Counter(named.values()).items() if count > 1]
    if twice:
        both = [top for top in named if named[top] == twice[0]]
        raise ConfigError(
            f"SRC {place}: {' and '.join(both)} are both the split {twice[0]}, or classes: "
            "rename one of them, or add --label name for classes"
        )
    return {name: top for top, name in sorted(named.items(), key=lambda pair: split_order(pair[1]))}


def _only_splits(files: Files, tops: list[str], splits: dict[str, str], label: str | None) -> None:
    """Raise ConfigError where some of the images are in no split, or some splits have no classes."""
    place, names = files.place, ", ".join(splits.values())
    are = "are splits" if len(splits) > 1 else "is a split"
    without = [name for name, top in splits.items() if f"{top}/{LABELS}" not in files.others and _is_flat(files, top)]
    best = next((name for name in splits if name not in without), None)
    if best:
        one = f"add --split {shlex.quote(best)}"
    else:
        one = f"type {command('shard', place, 'DST', '--split', next(iter(splits)), '--label', 'none')}"
    if loose := next((path for path in files.paths if "/" not in path), None):
        raise ConfigError(f"SRC {place}: {loose} is in no class folder, and beside the splits {names}: move it, or {one}")
    if others := [top for top in tops if top not in splits.values()]:
        raise ConfigError(
            f"SRC {place}: {names} {are} and {_some(others)} {'are' if others[1:] else 'is'} not, or all are classes: "
            f"{one} to pack that split, or add --label name for classes"
        )
    if label is None and without and best is None:
        raise ConfigError(
            f"SRC {place}: {names} {are} without class folders, or classes: "
            "add --label none for one class in each split, or add --label name for classes"
        )
    if label is None and without:
        raise ConfigError(
            f"SRC {place}: the split {without[0]} has no class folders, {best} has: {one} to pack that split, "
            "or add --label none for one class in each split"
        )


def _is_flat(files: Files, top: str) -> bool:
    return all(path.count("/") == 1 for path in files.paths if path.startswith(f"{top}/"))


def _set(files: Files, split: str, prefix: str, label: str | None, passed: list[tuple[str, str]]) -> Source:
    """The images under `prefix` as one set, with what is passed over."""
    place = f"{files.place}/{prefix}".rstrip("/") if prefix else files.place
    chosen = files.under(prefix)
    below = [files.paths[i].removeprefix(prefix) for i in chosen]
    form, classes, labels = _labelled(files, place, split, prefix=prefix, below=below, label=label)
    keep, again = _once(files, chosen, labels, classes)
    names = [files.paths[i] for i in chosen[keep]]
    seal = hashlib.sha256(files.versions[chosen[keep]].tobytes())
    for path in names:
        seal.update(path.encode(errors="surrogateescape") + b"\0")
    if form.startswith(_LABELLED):
        seal.update(labels.tobytes())
        passed = [one for one in passed if one[0] != f"{prefix}{LABELS}"]
    return Source(
        split=split,
        classes=classes,
        names=names,
        labels=labels[keep],
        read=lambda i: files.read(names[i]),
        fingerprint=seal.hexdigest(),
        layout=form,
        passed=(*passed, *again),
    )


def _labelled(
    files: Files, place: str, split: str, prefix: str, below: list[str], label: str | None
) -> tuple[str, tuple[str, ...], Ints]:
    """(layout, classes, labels) of the images `below` the prefix."""
    one_class = np.zeros(len(below), np.int64)
    if label == "none":
        return "one class (--label none)", ALL, one_class
    if label is None and f"{prefix}{LABELS}" in files.others:
        labels = read_labels(place, files.read(f"{prefix}{LABELS}"), below, _by_name(split))
        if labels is not None and (labels < 0).all():
            return f"{_LABELLED}, which has none: one class", ALL, one_class
        if labels is not None:
            return _LABELLED, tuple(map(str, range(int(labels.max()) + 1))), labels
    return _by_folder(files, place, split, prefix=prefix, below=below, label=label)


def _by_folder(
    files: Files, place: str, split: str, prefix: str, below: list[str], label: str | None
) -> tuple[str, tuple[str, ...], Ints]:
    """(layout, classes, labels) of images by the folder that they are in."""
    tops = sorted({folder.removeprefix(prefix) for folder in files.folders if folder.startswith(prefix)})
    tops = [top for top in tops if "/" not in top]
    holding = Counter(path.partition("/")[0] for path in below if "/" in path)
    loose = [path for path in below if "/" not in path]
    if loose and (holding or label == "name"):
        beside = f", beside the class folders {_some(list(holding))}" if holding else ""
        raise ConfigError(
            f"SRC {place}: {loose[0]} is in no class folder{beside}; put each image into CLASS/, "
            "or add --label none for one class"
        )
    if loose and split:
        raise ConfigError(f"SRC {place}: the split {split} has no class folders: add --label none for one class")
    if loose:
        return "a flat folder, one class", ALL, np.zeros(len(below), np.int64)
    if label is None:
        _no_wrapper(files, place, prefix, below, _by_name(split))
        _no_numbered_parts(place, list(holding), below, _by_name(split))
        _no_splits_below(place, below, _by_name(split))
    bare = [top for top in tops if not holding[top]]
    if bare and label is None:
        lost = said(files.left_over(f"{prefix}{bare[0]}/"))
        raise ConfigError(
            f"SRC {place}: class folder {bare[0]} has no images{f' (it holds {lost})' if lost else ''}; "
            f"add some or remove the folder, or {_by_name(split)} for the other folders"
        )
    tops = sorted(holding)
    form = plural(len(tops), "class folder") + (f" ({tops[0]}): one class" if len(tops) == 1 else "")
    if nested := Counter(path.rpartition("/")[0] for path in below if path.count("/") > 1):
        form += (
            f"; {plural(sum(nested.values()), 'image')} in {plural(len(nested), 'folder')} below a class folder "
            f"(such as {min(nested)}), taken as part of the class"
        )
    if bare:
        form += f"; without images, and no class: {_some(bare)}"
    number = {name: i for i, name in enumerate(tops)}
    return form, tuple(tops), np.array([number[path.partition("/")[0]] for path in below], np.int64)


def _no_wrapper(files: Files, place: str, prefix: str, below: list[str], by_name: str) -> None:
    """Raise ConfigError where all images are in one folder that holds several folders, or that holds labels."""
    wrapper, rest, labelled = "", below, False
    while not labelled and len({path.partition("/")[0] for path in rest}) == 1 and "/" in rest[0]:
        wrapper += f"{rest[0].partition('/')[0]}/"
        rest = [path.partition("/")[2] for path in rest]
        labelled = f"{prefix}{wrapper}{LABELS}" in files.others
    inside = sorted({path.partition("/")[0] for path in rest if "/" in path})
    if not wrapper or not (labelled or len(inside) > 1):
        return
    loose = [path for path in rest if "/" not in path and not labelled]
    what = LABELS if labelled else f"{plural(len(inside), 'folder')} ({_some(inside)})"
    way = f"move {loose[0]} into one of them, then " if loose else ""
    if files.is_zip:
        way += f"unpack it and name the folder {wrapper}"
    else:
        way += command("shard", f"{place}/{wrapper}".rstrip("/"), "DST")
    raise ConfigError(
        f"SRC {place}: all images are in the folder {wrapper} with {what} inside: for classes there, {way}; "
        f"for one class {wrapper.partition('/')[0]}, {by_name}"
    )


def _no_numbered_parts(place: str, tops: list[str], below: list[str], by_name: str) -> None:
    """Raise ConfigError where folders 00000, 00001, ... only cut one numbered sequence into parts."""
    if not all(re.fullmatch(r"\d{5}", top) for top in tops):
        return
    spans: dict[str, tuple[int, int]] = {}
    for path in below:
        digits = re.search(r"(\d+)\.\w+$", path)
        if not digits:
            return
        number, (least, greatest) = int(digits[1]), spans.get(path[:5], (1 << 62, -1))
        spans[path[:5]] = min(least, number), max(greatest, number)
    ends = [end for _, span in sorted(spans.items()) for end in span]
    if len(spans) > 1 and all(a < b for a, b in zip(ends[1::2], ends[2::2], strict=False)):
        raise ConfigError(
            f"SRC {place}: the folders {_some(sorted(spans))} hold one numbered sequence of images, or are classes: "
            f"add --label none for one class, or {by_name} for classes"
        )


def _no_splits_below(place: str, below: list[str], by_name: str) -> None:
    """Raise ConfigError where class folders hold folders called train, test, ..."""
    for path in below:
        top, *middle = path.split("/")[:-1]
        if found := next((part for part in middle if split_name(part)), None):
            raise ConfigError(
                f"SRC {place}: class folder {top} holds a folder {found}: if it is a split, make it {found}/{top}; "
                f"if it is a part of the class, {by_name}"
            )


def _once(files: Files, chosen: Ints, labels: Ints, classes: tuple[str, ...]) -> tuple[Ints, list[tuple[str, str]]]:
    """Which of the `chosen` images to pack, so that links show none twice; and what was left out for that.

    Raises ConfigError for an image that links put into two classes.
    """
    keep = np.ones(len(chosen), bool)
    again: list[tuple[str, str]] = []
    if not files.linked[chosen].any():
        return keep.nonzero()[0], again
    first: dict[tuple[int, int], int] = {}
    linked, identities = files.linked[chosen], files.identities[chosen]
    for at in np.argsort(linked, kind="stable").tolist():  # real ones first
        key = (int(identities[at, 0]), int(identities[at, 1]))
        earlier = first.setdefault(key, at)
        if earlier == at or not linked[at]:
            continue
        one, other = (files.paths[chosen[place]] for place in (earlier, at))
        if labels[earlier] != labels[at]:
            raise ConfigError(
                f"SRC {files.place}: {one} and {other} are one image by a link, in the classes {classes[labels[earlier]]} and "
                f"{classes[labels[at]]}: remove one link, or add --label none"
            )
        keep[at] = False
        again.append((other, "link to an image of the same class"))
    return keep.nonzero()[0], again


def _by_name(split: str) -> str:
    """The flags that make classes of the folders, to be typed."""
    return f"add --label name to --split {shlex.quote(split)}" if split else "add --label name"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
