"""Labels as shards have them, in texts, to classes numbered from 0."""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import ConfigError
from pipeline.wording import plural

_MAX_CLASSES = 1_000_000
_NUMBER = re.compile(r"[+-]?\d{1,18}(?:\.\d*(?:e[+-]?\d{1,2})?)?", re.IGNORECASE | re.ASCII)
_LIST = re.compile(r"[\[({].*|[+-]?[\d.]+(?:[,;\s]+[+-]?[\d.]+)+", re.DOTALL)


class Classes(NamedTuple):
    """What the labels' texts mean."""

    names: tuple[str, ...]
    """By label."""
    numbers: dict[str, int]
    """The label of each text."""
    wrong: dict[str, tuple[str, str]]
    """(what is wrong, what to do) for each text that is no label."""


def number_labels(counts: Counter[str], given: tuple[str, ...] | None, renumber: bool) -> Classes:
    """Return the classes of labels that occur so often.

    Integers, also written as 3.0, are labels; other texts are names, sorted. With `given`, a number is a line of it and
    another text one of its names. With `renumber` the integers that occur are numbered from 0 and name their classes.
    Raises ConfigError where the texts can be read in two ways.
    """
    known = set(given or ())
    ids, wrong = {}, {}
    for text in counts:
        number, reason = _read(text)
        if number is not None:
            ids[text] = number
        elif reason and text not in known:
            wrong[text] = reason
    names = sorted(text for text in counts if text not in ids and text not in wrong)
    if given is not None:
        return _by_file(given, ids, names, wrong)
    if names and ids:  # one damaged label would make names of all the others
        fewer, kind = (names, "numbers") if _sum(counts, names) <= _sum(counts, ids) else (list(ids), "names")
        wrong |= dict.fromkeys(fewer, (f"and others have {kind}", "add --classes FILE to name them all"))
        names, ids = [text for text in names if text not in wrong], {text: ids[text] for text in ids if text not in wrong}
    if names:
        return Classes(_bounded(tuple(names)), {name: label for label, name in enumerate(names)}, wrong)
    return _by_number(ids, renumber, wrong)


def _read(text: str) -> tuple[int | None, tuple[str, str] | None]:
    """Return (the integer, None), (None, what is wrong) or, for a name, (None, None)."""
    if _NUMBER.fullmatch(text):
        whole = int(text) if text.lstrip("+-").isdigit() else float(text)
        if whole != int(whole):
            return None, ("which is no whole number", "fix it")
        return (int(whole), None) if whole >= 0 else (None, ("which is below 0", "fix it"))
    if _LIST.fullmatch(text):
        return None, ("which is a list; a sample has one class", "store the number of the class")
    return None, None


def _by_file(given: tuple[str, ...], ids: dict[str, int], names: list[str], wrong: dict[str, tuple[str, str]]) -> Classes:
    by_name = {name: label for label, name in enumerate(given)}
    fits = all(number < len(given) for number in ids.values())
    if names or (not fits and by_name.keys() >= ids.keys()):
        numbers = {text: by_name[text] for text in (*names, *ids) if text in by_name}
    else:
        numbers = {text: number for text, number in ids.items() if number < len(given)}
        if ids and any(by_name.get(text, number) != number for text, number in ids.items()):
            text = next(text for text, number in ids.items() if by_name.get(text, number) != number)
            raise ConfigError(
                f"--classes: the label {text} may be line {ids[text] + 1} or the name in line {by_name[text] + 1}: "
                "write other names into the file, such as class-1"
            )
    lines = plural(len(given), "name")
    unknown = [text for text in (*names, *ids) if text not in numbers]
    return Classes(given, numbers, wrong | dict.fromkeys(unknown, (f"but --classes has {lines}", "fix it, or the file")))


def _by_number(ids: dict[str, int], renumber: bool, wrong: dict[str, tuple[str, str]]) -> Classes:
    found = sorted(set(ids.values()))
    if renumber:
        texts: dict[int, list[str]] = {number: [] for number in found}
        for text, number in ids.items():
            texts[number] += [text] if text.isdigit() else []
        names = tuple(texts[number][0] if len(texts[number]) == 1 else str(number) for number in found)
        label = {number: label for label, number in enumerate(found)}
        return Classes(_bounded(names), {text: label[number] for text, number in ids.items()}, wrong)
    count = found[-1] + 1 if found else 0
    if count > 2 * len(found) or count > _MAX_CLASSES:
        raise ConfigError(
            f"the labels are {plural(len(found), 'number')} from {found[0]} to {found[-1]}, which would be {count:,} classes, "
            f"{count - len(found):,} of them without images: add --renumber to have {plural(len(found), 'class', 'classes')} "
            f"that keep these numbers as names, or add --classes FILE with all {count:,} names if you mean the empty ones too"
        )
    return Classes(tuple(str(label) for label in range(count)), ids, wrong)


def _sum(counts: Counter[str], texts: "list[str] | dict[str, int]") -> int:
    return sum(counts[text] for text in texts)


def _bounded(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) > _MAX_CLASSES:
        raise ConfigError(f"the labels are {len(names):,} different texts: add --label WHERE to read the classes elsewhere")
    return names


def read_names(path: str) -> tuple[str, ...]:
    """Return the names of classes in a file, one in each line. Raises ConfigError that names the lines at fault."""
    try:
        lines = Path(path).expanduser().read_text("utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--classes {path}: cannot read it as UTF-8 ({error})") from None
    names = [line.strip() for line in lines]
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise ConfigError(f"--classes {path}: line {number} is empty: write a name for label {number - 1}")
        if name in first:
            raise ConfigError(
                f"--classes {path}: lines {first[name]} and {number} are both {name!r}: tell them apart, as in {name} (2)"
            )
        first[name] = number
    return tuple(names)


def empty_classes(names: tuple[str, ...], counts: tuple[int, ...], numbered: bool = False) -> str:
    """Return a line that names the classes without images; empty if there are none. `numbered`: their names are numbers."""
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if not empty:
        return ""
    text = f"{plural(len(empty), 'class has', 'classes have')} no image: {', '.join(empty[:10])}"
    text += ", ..." if len(empty) > 10 else ""
    return text + ("; if labels count from 1, add --renumber" if numbered and empty == ["0"] else "")
