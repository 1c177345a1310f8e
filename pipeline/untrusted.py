"""The boundary to content that somebody else may have made: what is wrong with it ends in one line that names the place.

Two doors: `parse` for JSON, which has a schema, and `parsing` around the parsers of other formats (IDX, zip, tar, parquet,
safetensors, ...), whose lists of exceptions no caller knows in full. Reading the bytes is not their business: a disk or a
store that fails stays a passing fault (`pipeline.storage`).
"""

import functools
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pipeline.errors import DataError, UserError, as_user_error
from pipeline.wording import printable

if TYPE_CHECKING:
    import pydantic

T = TypeVar("T")


def parse(kind: type[T], data: bytes | str, what: str, advice: str = "", error: type[UserError] = DataError) -> T:
    """Return the JSON `data` as a `kind`: a dataclass, TypedDict or type, with `Annotated` bounds; nothing is converted.

    Unknown keys are let pass, as a later version may write more. Raises `error`, a DataError unless said otherwise, that
    names `what` (a file or address), the place in it and what is wrong there, and ends with `advice`.
    """
    import pydantic

    try:
        found: T = _adapter(cast(Hashable, kind)).validate_json(data, strict=True)
        return found
    except pydantic.ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False, include_context=False)[0]
        place = "".join(f"{part}: " for part in [".".join(map(str, first["loc"]))] if part)
        raise error(_line(what, place + first["msg"], advice)) from None


@contextmanager
def parsing(what: str, advice: str = "", error: type[UserError] = DataError) -> Iterator[None]:
    """Let whatever a parser raises inside end as `error`, a DataError unless said otherwise, in one line that names `what`.

    UserErrors pass, and so does a full or forbidden disk. Keep it narrow: a fault of our own inside would look like the file's.
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise error(_line(what, "it asks for more memory than there is", advice)) from None
    except Exception as problem:
        if isinstance(problem, OSError) and (known := as_user_error(problem)):
            raise known from None
        raise error(_line(what, f"{type(problem).__name__}: {problem}", advice)) from problem


@functools.cache
def _adapter(kind: Any) -> "pydantic.TypeAdapter[Any]":
    import pydantic

    return pydantic.TypeAdapter(kind)


def _line(what: str, reason: str, advice: str) -> str:
    reason = printable(" ".join(reason.split()))
    return f"{what}: {reason[:200]}" + (f"; {advice}" if advice else "")
