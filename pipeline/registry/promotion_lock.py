"""One promoter of a model at a time, on whatever hosts: MLflow can set an alias, but not compare and set it.

Who wants the model first writes a tag of its own and then reads all of them; whoever sees another's takes its own back. Of
two that come at the same moment at least one sees the other, so both may have to try again, but never do both go on. No
clock is involved, except where a claim is an hour old: then its holder is taken for dead.
"""

import json
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from pipeline.errors import DataError, GateError
from pipeline.liveness import this_process, verdict
from pipeline.untrusted import parse
from pipeline.wording import printable

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PREFIX = "promotion_claim."
PATIENCE = 120.0
"""Seconds to wait for another promoter."""
_DEAD_AFTER = 3600.0


_Word = Annotated[str, Field(max_length=300)]
_Number = Annotated[str, Field(pattern="^[0-9]{1,18}$")]


class _Claim(TypedDict):
    """Who holds a model, as `_myself` tells it."""

    user: _Word
    host: _Word
    machine: _Word
    started: _Word
    pid: _Number
    time: float
    job_id: NotRequired[_Number]
    cluster_name: NotRequired[_Word]
    restart_count: NotRequired[_Number]


@contextmanager
def claim(client: "MlflowClient", name: str, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Hold the registered model `name`. Yields a check that raises GateError if the claim is gone.

    Raises GateError if another holds it for longer than `PATIENCE`.
    """
    key, until, waiting = f"{_PREFIX}{uuid.uuid4().hex[:16]}", time.monotonic() + PATIENCE, False
    told = set[str]()

    def tell(line: str) -> None:
        if line not in told:
            say(line)
        told.add(line)

    while True:
        others = _others(client, name, key, tell)
        if not others:
            client.set_registered_model_tag(name, key, json.dumps(_myself() | {"time": time.time()}))
            if not (others := _others(client, name, key, tell)):
                break
            client.delete_registered_model_tag(name, key)
        found, holder = next(iter(others.items()))
        who = printable(f"{holder['user']}@{holder['host']} (process {holder['pid']})")
        if time.monotonic() > until:
            tag = printable(found)
            raise GateError(f"{name} is being promoted by {who}; if that is dead, delete the registered model's tag {tag}")
        if not waiting:
            say(f"waiting for {who}, who is promoting {name}")
        waiting = True
        time.sleep(random.uniform(0.1, 1.0))  # whoever met at one moment does not do so again

    def check() -> None:
        if key not in client.get_registered_model(name).tags:
            raise GateError(f"the claim on {name} was taken away (it took too long, or somebody deleted it): promote it again")

    try:
        yield check
    except BaseException:
        with suppress(Exception):  # the failure counts, not what comes of it
            client.delete_registered_model_tag(name, key)
        raise
    client.delete_registered_model_tag(name, key)


def _others(client: "MlflowClient", name: str, mine: str, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Claims of others that live, by tag. Those of the dead are removed; `say` is told of tags that are no claims."""
    claims = {}
    for key, value in client.get_registered_model(name).tags.items():
        if key.startswith(_PREFIX) and key != mine:
            try:
                claims[key] = _read(value)
            except DataError as error:  # no promoter writes such a thing, so none is waited for
                say(f"ignored: {name} has a tag {printable(key)} that is no claim of `biggan promote`: {error}")
    for key in [key for key, holder in claims.items() if _is_dead(holder)]:
        del claims[key]
        with suppress(Exception):  # another may have removed it
            client.delete_registered_model_tag(name, key)
    return claims


def _read(text: str) -> dict[str, Any]:
    """Return a claim as `_myself` writes it. Raises DataError for anything else, and for one from the future."""
    holder: Any = parse(_Claim, text, "its value")
    if not holder["time"] <= time.time() + _DEAD_AFTER:
        raise DataError(f"its time is {holder['time']:g}, which is in the future")
    return holder


def _myself() -> dict[str, Any]:
    return {"user": os.environ.get("USER") or str(os.getuid()), **this_process()}


def _is_dead(holder: dict[str, Any]) -> bool:
    return time.time() - holder["time"] > _DEAD_AFTER or verdict(holder) == "gone"
