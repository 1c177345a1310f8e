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
from typing import TYPE_CHECKING, Any

from pipeline.errors import GateError
from pipeline.process import this_process, verdict

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PREFIX = "promotion_claim."
PATIENCE = 120.0
"""Seconds to wait for another promoter."""
_DEAD_AFTER = 3600.0


@contextmanager
def claim(client: "MlflowClient", name: str, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Hold the registered model `name`. Yields a check that raises GateError if the claim is gone.

    Raises GateError if another holds it for longer than `PATIENCE`.
    """
    key, until, waiting = f"{_PREFIX}{uuid.uuid4().hex[:16]}", time.monotonic() + PATIENCE, False
    while True:
        others = _others(client, name, key)
        if not others:
            client.set_registered_model_tag(name, key, json.dumps(_myself() | {"time": time.time()}))
            if not (others := _others(client, name, key)):
                break
            client.delete_registered_model_tag(name, key)
        found, holder = next(iter(others.items()))
        who = f"{holder['user']}@{holder['host']} (process {holder['pid']})"
        if time.monotonic() > until:
            raise GateError(f"{name} is being promoted by {who}; if that is dead, delete the registered model's tag {found}")
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


def _others(client: "MlflowClient", name: str, mine: str) -> dict[str, dict[str, Any]]:
    """Claims of others that live, by tag. Those of the dead are removed."""
    tags = client.get_registered_model(name).tags
    claims = {key: json.loads(value) for key, value in tags.items() if key.startswith(_PREFIX) and key != mine}
    for key in [key for key, holder in claims.items() if _is_dead(holder)]:
        del claims[key]
        with suppress(Exception):  # another may have removed it
            client.delete_registered_model_tag(name, key)
    return claims


def _myself() -> dict[str, Any]:
    return {"user": os.environ.get("USER") or str(os.getuid()), **this_process()}


def _is_dead(holder: dict[str, Any]) -> bool:
    return time.time() - holder["time"] > _DEAD_AFTER or verdict(holder) == "gone"
