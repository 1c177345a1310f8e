"""The meaning of names in a source: splits, files of desktops and tools, image files, equal class names."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from PIL import features

from pipeline.storage.ownership import TOOLS
from pipeline.wording import plural

SPLITS = ("train", "test", "val", "valid", "validation", "dev", "eval")
_OTHER_WORDS = {"training": "train", "testing": "test"}
_PART = re.compile(r"(.+?)[-_.]\d+[-_]of[-_]\d+([-_.][0-9a-f]+)?")

IMAGES = (
    *(".bmp", ".dib", ".gif", ".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".apng", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".tif", ".tiff", ".tga", ".qoi"),
    *((".webp",) if features.check("webp") else ()),
    *((".avif",) if features.check("avif") else ()),
    *((".jp2", ".j2k", ".jpx") if features.check("jpg_2000") else ()),
)
"""Endings of the files that are packed."""
_UNREAD = {".heic", ".heif", ".jxl", ".svg", ".psd", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raw", ".exr"}
_UNREAD |= {".webp", ".avif", ".jp2", ".j2k", ".jpx", ".ico", ".hdr", ".dcm"}

_NOUN = re.compile(r"\b(file|folder|link|image)\b")


def split_name(name: str) -> str | None:
    """Return the split that a folder or part of this name is: `Training` is train, `x-00000-of-00002` is x; else None."""
    part = _PART.fullmatch(name.lower())
    word = part[1] if part else name.lower()
    word = _OTHER_WORDS.get(word, word)
    return word if part or word in SPLITS else None


def split_within(name: str) -> str | None:
    """Return the split that a longer name speaks of (`seg_train`, `train2017`); None where it names none or several."""
    if exact := split_name(name):
        return exact
    words = [_OTHER_WORDS.get(word, word) for word in re.findall(r"[a-z]+", name.lower())]
    found = [word for word in words if word in SPLITS]
    if found and words[0] in SPLITS:
        return words[0]
    return found[0] if len(set(found)) == 1 else None


def split_order(split: str) -> tuple[int, str]:
    """Return the place of a split among others, as a key to sort by."""
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS)), split


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Return `names` so that no two look equal (NFC) or are empty.

    The second `crane` is `crane (2)`, an empty name 3 is `class 3`.
    """
    given = list(names)
    taken = {_composed(name) for name in given}
    used: dict[str, str] = {}
    for number, name in enumerate(given):
        base, count = (name if name.strip() else f"class {number}"), 1
        text = base
        while _composed(text) in used or (text != name and _composed(text) in taken):
            count += 1
            text = f"{base} ({count})"
        used[_composed(text)] = text
    return tuple(used.values())


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def printable_name(text: str) -> str:
    """Return `text` so that it can be written as UTF-8: names of files may hold any bytes."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def escaped(text: str) -> str:
    """Return `text` with an escape for each byte that is not UTF-8, as in caf\\xe9; `text` itself where all of it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode().replace("\\udc", "\\x")
    return text


def has_image_name(path: str) -> bool:
    """Tell whether the name is that of an image file that can be read here."""
    return path.lower().endswith(IMAGES)


def clutter(name: str, is_folder: bool) -> str | None:
    """Return the kind of a file or folder that no person put there (of a desktop, a NAS, a hidden one); None for others."""
    what = "folder" if is_folder else "file"
    if name.lower() in TOOLS or name.startswith("._") or name == ".DS_Store":
        return f"{what} of a desktop or NAS"
    return f"hidden {what}" if name.startswith(".") else None


def kind_of(path: str) -> str:
    """Return the kind of a file that is passed over, as in `.txt file`."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    ending = name[dot:].lower() if dot > 0 else ""
    if ending in _UNREAD:
        return f"{ending} image that cannot be read here"
    return f"{ending} file" if ending else "file without an ending"


def said(passed: Sequence[tuple[str, str]]) -> str:
    """Return what was passed over as (path, kind), in words: `2 .txt files (such as a/x.txt), 1 hidden file (.x)`."""
    counts = Counter(kind for _, kind in passed)
    example = {kind: path for path, kind in reversed(passed)}

    def worded(kind: str, count: int) -> str:
        many = _NOUN.sub(lambda noun: f"{noun[0]}s", kind, count=1)
        return f"{plural(count, kind, many)} ({'such as ' if count > 1 else ''}{example[kind]})"

    return ", ".join(worded(kind, count) for kind, count in counts.items())
