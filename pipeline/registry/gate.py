"""The gate before `champion`: what a version has to show, and the move of the alias, which comes last.

The cheap questions are asked first. Nothing is written to the registry before all of them are answered, apart from the claim
of `pipeline.registry.promotion_lock`; a refusal is a GateError, and the alias is where it was.
"""

import getpass
import hashlib
import json
import math
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, GateError, StorageError
from pipeline.registry import versions
from pipeline.registry.gate_proof import prove
from pipeline.registry.promotion_lock import claim
from pipeline.runs import evaluations
from pipeline.runs.evaluations import Evaluation, fault, lower_is_better
from pipeline.tracking.mlflow_errors import first_line
from pipeline.wording import printable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a promotion asks for."""

    alias: str = versions.CHAMPION
    metric: str | None = None
    """Default: the candidate's only FID."""
    limit: float | None = None
    """The metric must be at least as good."""
    first: bool = False
    """There is no champion yet, and no limit."""
    allow_equal: bool = False
    other_dataset: bool = False
    """The champion may have been trained on other data."""
    again: bool = False
    """The version may be one that was rolled back."""


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
            _check_origin(client, candidate)
            _check_not_rolled_back(candidate, terms)
            figures = _compare(candidate, champion, terms)
            loaded = prove(client, candidate, say)
            still_mine()
            report = {"gate": "passed", "candidate": _identity(candidate), "champion": champion and _identity(champion)}
            report |= {"terms": vars(terms), "figures": figures, "loaded": loaded}
            tags = {"validation_status": "passed", f"previous_{terms.alias}": before or ""}
            _move(client, candidate, champion, alias=terms.alias, report=report, tags=tags, by="promoted_by")
            return Moved(candidate.name, str(candidate.version), before, figures["why"])


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


def _check_origin(client: "MlflowClient", candidate: "ModelVersion") -> None:
    """Raises GateError unless the run that the version is from is there: it is where a report of its promotion goes."""
    from mlflow.exceptions import MlflowException

    try:
        stage = client.get_run(candidate.run_id or "").info.lifecycle_stage
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        stage = "gone"
    if stage != "active":
        state = (
            f"is {stage}: type `mlflow runs restore --run-id {candidate.run_id}`" if stage == "deleted" else "does not exist"
        )
        raise GateError(f"{_named(candidate)}: its run {candidate.run_id} {state}")


def _check_not_rolled_back(candidate: "ModelVersion", terms: Terms) -> None:
    """Raises GateError for a version that `rollback` has taken back: a nightly promotion must not undo that."""
    if candidate.tags.get("validation_status") == "rolled_back" and not terms.again:
        raise GateError(
            f"{_named(candidate)} was rolled back: register a better version, or add --again to promote this one all the same"
        )


def _compare(candidate: "ModelVersion", champion: "ModelVersion | None", terms: Terms) -> dict[str, Any]:
    """The figures that decide, for the report. Raises GateError."""
    ours = _evaluation(candidate)
    metric = _choose(ours, terms.metric, candidate)
    mine, better = ours.metrics[metric], "below" if lower_is_better(metric) else "above"
    sign = 1 if lower_is_better(metric) else -1
    if terms.limit is not None and not sign * mine <= sign * terms.limit:
        raise GateError(f"{_named(candidate)}: {metric} {mine:g} is not good enough, --limit is {terms.limit:g}")
    figures: dict[str, Any] = {"metric": metric, "candidate": mine, "recipe_id": ours.recipe_id, "recipe": ours.recipe}
    if champion is None:
        if terms.limit is None and not terms.first:
            raise GateError(
                f"{candidate.name} has no {terms.alias} to compare with: type --limit VALUE for {metric} ({mine:g}), or --first"
            )
        return figures | {"why": f"{metric} {mine:g}, the first"}
    if terms.first:
        raise GateError(f"--first: {champion.name} has a {terms.alias} already, version {champion.version}; leave it out")
    theirs = _evaluation(champion)
    if theirs.recipe_id != ours.recipe_id:
        raise GateError(
            f"{_named(candidate)} and {_named(champion)} were evaluated otherwise, so their figures do not compare: "
            + "; ".join(_differences(ours.recipe, theirs.recipe) or [f"recipe_id {ours.recipe_id}, not {theirs.recipe_id}"])
        )
    data = [version.tags.get("dataset_fingerprint", "none")[:12] for version in (candidate, champion)]
    if data[0] != data[1] and not terms.other_dataset:
        raise GateError(
            f"{_named(candidate)} was trained on other data ({data[0]}) than {_named(champion)} ({data[1]}): "
            "type --other-dataset if that is meant"
        )
    other = theirs.metrics.get(metric, math.nan)
    if fault(metric, other):
        raise GateError(
            f"{_named(champion)}, the {terms.alias}, has no finite {metric} that can be: evaluate and register it again"
        )
    if mine == other and not terms.allow_equal:
        raise GateError(f"{_named(candidate)}: {metric} {mine:g} equals that of {_named(champion)}; --allow-equal takes it")
    if sign * mine > sign * other:
        raise GateError(f"{_named(candidate)}: {metric} {mine:g} is not {better} {other:g} of {_named(champion)}")
    word = "equals" if mine == other else better
    return figures | {"champion": other, "why": f"{metric} {mine:g} {word} {other:g} of version {champion.version}"}


def _evaluation(version: "ModelVersion") -> Evaluation:
    where = f"{_named(version)}, tag {evaluations.TAG}"
    try:
        found = evaluations.parse(version.tags[evaluations.TAG], where)
    except KeyError:
        raise GateError(
            f"{_named(version)} has no tag {evaluations.TAG}: `biggan evaluate` its run, register it again"
        ) from None
    except ConfigError as error:
        raise GateError(str(error)) from None
    if found is None:
        raise GateError(f"{where}: metrics, recipe or recipe_id is missing; evaluate its run and register it again")
    return found


def _choose(ours: Evaluation, wanted: str | None, candidate: "ModelVersion") -> str:
    """The metric that decides. Raises GateError if there is none, or one of the candidate's figures is not finite."""
    for name, value in ours.metrics.items():
        if wrong := fault(name, value):
            raise GateError(f"{_named(candidate)}: {printable(name)} is {value:g}, {wrong}; evaluate it again")
    names = ", ".join(ours.metrics) or "nothing"
    distances = [name for name in ours.metrics if name.startswith("FID[")]
    if wanted is None and len(distances) != 1:
        raise GateError(f"{_named(candidate)} has {names}: say which decides, with --metric")
    metric = wanted or distances[0]
    if metric not in ours.metrics:
        raise GateError(f"{_named(candidate)} has no {metric}, it has {names}: evaluate it, or type another --metric")
    return metric


def _differences(ours: dict[str, Any], theirs: dict[str, Any], path: str = "") -> list[str]:
    """What differs, as lines: `samples 10000, not 5000`."""
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key} {a}, not {b}")
    return found


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


def _named(version: "ModelVersion") -> str:
    return f"{version.name} version {version.version}"
