"""The digest of a registered model: every file of it, so that no code of it runs that `biggan register` has not written.

The registry keeps it as a tag of the version. The files are elsewhere, in the artifact store, which others may write to.
"""

import hashlib
import json
from pathlib import Path

from pipeline.errors import DataError
from pipeline.storage.removal import move_aside

FILES, GOLDEN = "files_sha256", "golden_sha256"
"""Tags of a version: the digest of its files, and the SHA-256 of its golden samples."""

_ADDED = ("registered_model_meta", "__pycache__")
"""What appears in a model's folder later. MLflow writes its name and version at the top of a local store when it serves from
there; Python writes bytecode beside sources. Neither is needed: both are taken out of a copy before it is used."""


Rows = list[tuple[str, int, str]]


def list_files(folder: Path) -> Rows:
    """Return name, size and SHA-256 of each file in `folder`, by name.

    Raises DataError for anything that is neither a file nor a folder, such as a link: what it leads to may change.
    """
    rows = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise DataError(f"{path.relative_to(folder)} is a link or a device: a model consists of files")
        if path.is_file():
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            rows.append((path.relative_to(folder).as_posix(), path.stat().st_size, content))
    return sorted(rows)


def digest(rows: Rows) -> str:
    """Return the SHA-256 of what `list_files` says of a model."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def take_out_additions(folder: Path, aside: Path) -> None:
    """Move what MLflow and Python may have added to the model in `folder` to the new folder `aside`."""
    top, bytecode = _ADDED
    added = [path for path in sorted(folder.rglob(bytecode)) if path.parent.name != bytecode]
    aside.mkdir()
    for number, path in enumerate(path for path in (folder / top, *added) if path.exists() or path.is_symlink()):
        (aside / str(number)).mkdir()
        move_aside(path, aside / str(number))
