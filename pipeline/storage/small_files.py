"""Small files that a run's folder is described by, as what they should be: the folder may be damaged, or come from others.

`read` refuses a damaged file; `optional` is for those that a command can do without: it says so and passes over them.
"""

import sys
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import DataError, UserError
from pipeline.untrusted import parse, parsing

T = TypeVar("T")

BIG = 1 << 53
"""Counts of images, steps and the like are below it."""


def read(kind: type[T], path: Path, advice: str = "") -> T | None:
    """Return the JSON file `path` as a `kind`; None if there is none.

    Raises DataError, which ends with `advice`, if it is damaged or no file.
    """
    data = _bytes(path, advice)
    if data is not None and not data.strip(b"\0 \n"):  # as a full disk or a power cut leaves it
        raise DataError(f"{path} is empty" + (f": {advice}" if advice else ""))
    return None if data is None else parse(kind, data, f"{path} is damaged", advice)


def optional(kind: type[T], path: Path) -> T | None:
    """Return the JSON file `path` as a `kind`; None if there is none, and, with a warning, if it is damaged or no file."""
    try:
        return read(kind, path)
    except UserError as error:
        pass_over(error)
        return None


def pass_over(error: UserError) -> None:
    """Say on stderr what is passed over, and why."""
    print(f"biggan: warning: {error}; it is passed over", file=sys.stderr)


def read_yaml(path: Path, advice: str = "") -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises DataError, which ends with `advice`, if it is damaged, empty or no file."""
    return parse_yaml(_bytes(path, advice) or b"", str(path), advice)


def parse_yaml(data: bytes, what: str, advice: str = "") -> dict[str, Any]:
    """Return the mapping that is the YAML text `data`. Raises DataError, which names `what` and ends with `advice`."""
    import yaml

    with parsing(f"{what} is damaged", advice):
        found = yaml.safe_load(data)
    if not isinstance(found, dict):
        raise DataError(f"{what} is empty or damaged" + (f": {advice}" if advice else ""))
    return found


def _bytes(path: Path, advice: str) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, not a file" + (f": {advice}" if advice else "")) from None
