"""The gate before `champion`: what a version has to show, and the move of the alias, which comes last.

Nothing is written to the registry before all of `pipeline.registry.gate_checks` have passed, apart from the claim of
`pipeline.registry.promotion_lock`; a refusal is a GateError, and the alias is where it was.
"""

import getpass
import hashlib
import json
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import GateError, StorageError
from pipeline.registry import versions
from pipeline.registry.gate_checks import Case, Terms, checked
from pipeline.registry.promotion_lock import claim
from pipeline.tracking.mlflow_errors import first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

Say = Callable[[str], None]


@dataclass(frozen=True)
class Moved:
    """What became of the alias."""

    name: str
    version: str
    before: str | None
    """The version that had it."""
    why: str
    """One line; empty if `version` had it already."""


def promote(store: str, uri: str, terms: Terms, say: Say) -> Moved:
    """Move `terms.alias` to the version `uri` if it passes the gate.

    Raises GateError, ConfigError, DataError if its files are gone, or StorageError.
    """
    with versions.store_errors(store):
        client = versions.use(store, write=True)
        candidate = versions.resolve(client, uri)
        with claim(client, candidate.name, say) as still_mine:
            champion = _holder(client, candidate.name, terms.alias)
            before = str(champion.version) if champion else None
            if before == str(candidate.version):
                return Moved(candidate.name, before, before, "")
            case = Case(client, candidate, champion, terms, say)
            report = {"gate": "passed", "candidate": _identity(candidate), "champion": champion and _identity(champion)}
            report |= {"terms": vars(terms)} | checked(case)
            still_mine()
            tags = {"validation_status": "passed", f"previous_{terms.alias}": before or ""}
            _move(client, candidate, champion, alias=terms.alias, report=report, tags=tags, by="promoted_by")
            return Moved(candidate.name, str(candidate.version), before, case.why)


def rollback(store: str, name: str, alias: str, say: Say) -> Moved:
    """Move `alias` back to the version that had it before. Raises GateError, ConfigError or StorageError."""
    with versions.store_errors(store):
        client = versions.use(store, write=True)
        champion = versions.resolve(client, f"models:/{name}@{alias}")
        with claim(client, name, say) as still_mine:
            champion = versions.resolve(client, f"models:/{name}@{alias}")
            previous = champion.tags.get(f"previous_{alias}")
            if not previous:
                raise GateError(f"{name} version {champion.version} has no version before it as {alias} to go back to")
            target = versions.resolve(client, f"models:/{name}/{previous}")
            still_mine()
            report = {"rollback": _identity(champion), "to": _identity(target), "alias": alias}
            client.set_model_version_tag(name, champion.version, "validation_status", "rolled_back")
            _move(client, target, champion, alias=alias, report=report, tags={}, by="rolled_back_to_by")
            return Moved(name, str(target.version), str(champion.version), "rolled back")


def _holder(client: "MlflowClient", name: str, alias: str) -> "ModelVersion | None":
    """The version that has the alias now."""
    held = client.get_registered_model(name).aliases.get(alias)
    return client.get_model_version(name, held) if held else None


def _move(
    client: "MlflowClient",
    target: "ModelVersion",
    champion: "ModelVersion | None",
    alias: str,
    report: dict[str, Any],
    tags: dict[str, str],
    by: str,
) -> None:
    """Tags, then the alias, then a look whether it holds, then the report to the run."""
    who = f"{getpass.getuser()}@{socket.gethostname()}"
    text = json.dumps(report | {"by": who, "time": time.time()}, indent=1, sort_keys=True) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    name, now = target.name, _holder(client, target.name, alias)
    if (now and now.version) != (champion and champion.version):
        raise GateError(f"{name}: {alias} has meanwhile been moved to version {now.version if now else 'none'}; promote again")
    for key, value in (tags | {by: who, "gate_report_sha256": digest}).items():
        client.set_model_version_tag(name, target.version, key, value)
    client.set_registered_model_alias(name, alias, target.version)
    held = _holder(client, name, alias)
    if not held or held.version != target.version:
        raise GateError(f"{name}: {alias} is at version {held.version if held else 'none'}: somebody moved it at this moment")
    file = f"promotions/{re.sub(r'[^A-Za-z0-9_-]', '-', name)}-{target.version}-{alias}-{digest[:12]}.json"
    try:
        client.log_text(target.run_id or "", text, file)
    except Exception as error:
        raise StorageError(
            f"{alias} is version {target.version} of {name} now, but the report did not reach its run {target.run_id}: "
            f"{first_line(error)}"
        ) from error


def _identity(version: "ModelVersion") -> dict[str, Any]:
    keys = ("weights_sha256", "images", "git_commit", "dataset_fingerprint", "config_sha256")
    return {"name": version.name, "version": str(version.version), "run_id": version.run_id} | {
        key: version.tags.get(key) for key in keys
    }
