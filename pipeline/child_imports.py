"""What child processes import: the same as this one, and never what happens to lie in the directory where a user types."""

import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path


def child_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables of a child that must not import from the working directory, on top of `environ`.

    An empty part of PYTHONPATH, which `PYTHONPATH=$PYTHONPATH:/x` easily makes, means that directory, too. A copy of the code
    that is not installed is found all the same.
    """
    here, root = os.getcwd(), str(Path(__file__).parents[1])
    known = (os.environ if environ is None else environ).get("PYTHONPATH", "").split(os.pathsep)
    parts = [path for part in known if part and (path := os.path.abspath(part)) not in (here, root)]
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        parts.insert(0, root)
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(parts)}


def from_here() -> None:
    """Let this process import from the working directory as well, last of all: a user's own `data.transform` may be there."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
