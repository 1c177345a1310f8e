"""Whether a folder that the user names may be written to: it is new, empty, or ours. All commands ask here.

What systems and editors leave in folders, hidden files and the like of `lost+found`, counts for none of that, and stays.
"""

import os
from collections.abc import Callable

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.wording import printable

TOOLS = {"@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin", "recycler", "__macosx"}
TOOLS |= {"system volume information", "lost+found", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
"""Names, in lower case, of what is nobody's work."""


def refuse_foreign(
    place: str, uri: str, advice: str, kind: str = "", is_ours: Callable[[list[str]], bool] = lambda names: False
) -> None:
    """Raise ConfigError if the folder `uri`, which messages call `place`, holds files, unless `is_ours` knows them as a `kind`.

    `is_ours` gets the names in it. Without it the folder has to be empty, whoever wrote to it.
    """
    path = storage.local_path(uri)
    if path is not None and os.path.lexists(path) and not path.is_dir():
        raise ConfigError(f"{place} is not a folder: {advice}")
    found = [name for name in storage.names(uri) if not name.startswith(".") and name.lower() not in TOOLS]
    if found and not is_ours(found):
        other = f" and is not {kind}" if kind else ""
        raise ConfigError(f"{place} is not empty{other} (it holds {printable(found[0])}): {advice}")
