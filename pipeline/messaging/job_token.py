"""The token of a job on several nodes: whoever knows it is one of them. On one node nobody else needs one.

It comes from the scheduler's environment (BIGGAN_TOKEN), or from a file that only this user can read (--token-file). Without
either the nodes share a disk: the main node leaves a new one in a file beside RUN, which it takes away at the end.
"""

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline import variables
from pipeline.errors import ConfigError, UserError

_LEAST = 16
"""Characters: fewer could be guessed."""
_SAME = f"set the variable {variables.TOKEN} to the same on all nodes"


@dataclass(frozen=True)
class Token:
    """Where a node of several has its token from: `given`, else the file `place` that all nodes share."""

    given: str | None = None
    place: Path | None = None

    def make(self) -> str:
        """On the main node: the token that is given, else a new one, where the other nodes find it. Raises ConfigError."""
        if self.given:
            return self.given
        if self.place is None:
            raise ConfigError(_missing())
        from pipeline.storage import removal  # imports the stores, and `biggan --help` this

        token, file = new(), self.place
        file.parent.mkdir(parents=True, exist_ok=True)
        removal.remove(str(file), _is_token)  # of a start that was killed
        try:
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as out:
                out.write(token)
        except FileExistsError:
            raise ConfigError(f"{file} is there: move it away, or wait for the end of a start that has just begun") from None
        return token

    def find(self) -> str | None:
        """On any other node: the token that is given, else the one in the file, None as long as there is none."""
        if self.given or self.place is None:
            return self.given
        # The listing makes a network file system look again: it remembers for a minute that there was no file.
        if not self.place.parent.is_dir() or self.place.name not in os.listdir(self.place.parent):
            return None
        return read(self.place)

    def forget(self) -> None:
        """On the main node: take the file away."""
        if not self.given and self.place is not None:
            from pipeline.storage import removal

            with contextlib.suppress(UserError):
                removal.remove(str(self.place), _is_token)


def new() -> str:
    """Return a token that nobody can guess."""
    return secrets.token_hex(32)


def _is_token(data: bytes) -> bool:
    return re.fullmatch(rb"[0-9a-f]{64}", data) is not None


def token(environ: Mapping[str, str], file: str | None, run: str | None) -> Token:
    """Return the token of `--token-file`, else of the environment, else where it will be beside the folder `run`.

    Raises ConfigError for one that is too short, and for a file that others can read.
    """
    place = Path(f"{run.rstrip('/')}.token") if run else None
    if file is not None:
        if (found := read(Path(file))) is None:
            raise ConfigError(f"--token-file {file}: there is no such file: name the file that holds the token")
        return Token(_checked(found, f"--token-file {file}"), place)
    given = environ.get(variables.TOKEN)
    return Token(_checked(given, variables.TOKEN) if given else None, place)


def read(file: Path) -> str | None:
    """Return what `file` holds, None if there is none. Raises ConfigError if it is not this user's alone."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read the token in {file}: {error.strerror}: set the variable {variables.TOKEN}") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o077:
            raise ConfigError(
                f"the token in {file} is not yours alone (mode {stat.S_IMODE(found.st_mode):03o}): "
                "make it a file that only you can read, with `chmod 600 FILE`, and a new token"
            )
        return os.read(descriptor, 1000).decode(errors="replace").strip() or None
    finally:
        os.close(descriptor)


def refused(main: str) -> ConfigError:
    """Return what a node says whose token is not the main node's."""
    return ConfigError(
        f"node 0 at {main} has another token than this node: set the variable {variables.TOKEN} to the same on all nodes"
    )


def missing() -> ConfigError:
    """Return what a node says that has no token, and does not find the main node's."""
    return ConfigError(_missing())


def _missing() -> str:
    return f"this node has no token, which would show that it is one of the job: {_SAME}, or pass --token-file FILE"


def _checked(token: str, what: str) -> str:
    if len(token) < _LEAST or not token.isprintable():
        raise ConfigError(f"{what}: the token needs {_LEAST} characters or more, in one line, that nobody can guess")
    return token
