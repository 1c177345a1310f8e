"""The failures that a user can mend. `jobs.cli` prints each as one line, without a traceback, and exits with its code."""

import errno

from pipeline import exit_codes
from pipeline.redaction import hide_secrets
from pipeline.wording import printable


class UserError(Exception):
    """Base: the message names the flag, file or class at fault and says what to do.

    In one line, which holds no secret and no control character, wherever it goes.
    """

    exit_code = exit_codes.CRASHED.number

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(hide_secrets(value)) if isinstance(value, str) else value for value in args))


class ConfigError(UserError):
    """Bad configuration or bad input: trying again unchanged cannot help (`EX_CONFIG`)."""

    exit_code = exit_codes.CONFIG.number


class DataError(UserError):
    """Stored data (shards, index, checkpoint) is damaged or not what its index says (`EX_DATAERR`)."""

    exit_code = exit_codes.DATA.number


class NodeError(UserError):
    """A node is missing, bad, or cannot be reached: trying again, or on other nodes, may help (`EX_UNAVAILABLE`)."""

    exit_code = exit_codes.NODES.number


class StorageError(UserError):
    """A disk or an object store refused: full, read-only, unreachable (`EX_IOERR`)."""

    exit_code = exit_codes.STORAGE.number


class TrainingError(UserError):
    """The training itself went bad, and trying again unchanged would most likely end the same way (no code of sysexits.h)."""

    exit_code = exit_codes.TRAINING.number


class GateError(UserError):
    """A model was not good enough to be promoted, or not proven so; its alias is where it was (no code of sysexits.h)."""

    exit_code = exit_codes.NOT_PROMOTED.number


def as_user_error(error: OSError) -> UserError | None:
    """The line for a disk that refuses, wherever it did; None for an OSError that only a programmer understands."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"the disk is full{where}: free some space or name another folder, then run the same command again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ConfigError(f"no permission to write or read there{where}: {error.strerror}; name another folder")
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):  # a folder where a file should be, ...
        return ConfigError(
            f"cannot open {error.filename or 'a file'}: {error.strerror}; move it elsewhere, or name another path"
        )
    return None
