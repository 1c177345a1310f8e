"""The labels in StyleGAN's `dataset.json`, which lies beside images in folders by number."""

import json
import re

import numpy as np

from pipeline.errors import ConfigError
from pipeline.packing.sources.base import Ints
from pipeline.untrusted import parsing
from pipeline.wording import plural


def read_labels(place: str, data: bytes, paths: list[str], by_folder: str) -> Ints | None:
    """Return the label of each of `paths` [n]: all -1 where the file has none; None where it is no such file.

    `by_folder` says with what flags to take the folders for classes. Raises ConfigError where its labels are not one number for
    each image.
    """
    where = f"SRC {place}: dataset.json"
    with parsing(f"{where} cannot be read", f"fix it, or {by_folder} for classes by folder", ConfigError):
        document = json.loads(data)
    if not isinstance(document, dict) or "labels" not in document:
        return None
    if not document["labels"]:
        if all(re.fullmatch(r"(\d{5}/)*[^/]*", path) for path in paths):
            return np.full(len(paths), -1, np.int64)
        raise ConfigError(
            f"{where} has no labels, but folders have names, such as {paths[0]}: add --label none for one class, "
            f"or {by_folder} for classes by folder"
        )
    if not isinstance(document["labels"], list):
        raise ConfigError(f"{where} has labels that are no list: write [[file, class], ...], or add --label none")
    labels: dict[str, int] = {}
    for entry in document["labels"]:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise ConfigError(f"{where} has the entry {str(entry)[:80]}: write [file, class], or add --label none")
        name, label = entry[0].replace("\\", "/"), entry[1]
        if type(label) is not int or label < 0:
            raise ConfigError(f"{where} gives {name} the label {str(label)[:80]}: write a number from 0, or add --label none")
        if labels.setdefault(name, label) != label:
            raise ConfigError(f"{where} gives {name} the labels {labels[name]} and {label}: remove one")
    if missing := sorted(labels.keys() - set(paths)):
        raise ConfigError(
            f"{where} has labels for {plural(len(missing), 'file')} not there, such as {missing[0]}: restore them"
        )
    if without := [path for path in paths if path not in labels]:
        raise ConfigError(
            f"{where} has no label for {len(without):,} of {len(paths):,} images, such as {without[0]}: add them, "
            "or add --label none"
        )
    if (greatest := max(labels.values())) >= max(1000, len(labels)):
        raise ConfigError(
            f"{where} has the label {greatest} for {plural(len(labels), 'image')}: number the classes from 0, "
            "or add --label none for one class"
        )
    return np.array([labels[path] for path in paths], np.int64)
