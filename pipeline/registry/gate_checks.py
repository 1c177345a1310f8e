"""What a version has to show before it gets the alias: one function for each check, in `CHECKS`, the cheap ones first.

A check raises GateError if the version does not pass, and returns what the report of the promotion says of it, if anything.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, GateError
from pipeline.registry import versions
from pipeline.registry.gate_proof import prove
from pipeline.runs import evaluations
from pipeline.runs.evaluations import Evaluation, fault, lower_is_better
from pipeline.wording import printable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

Report = dict[str, Any]


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
class Case:
    """A version that wants the alias, and the one that has it."""

    client: "MlflowClient"
    candidate: "ModelVersion"
    champion: "ModelVersion | None"
    terms: Terms
    say: Callable[[str], None]

    @cached_property
    def ours(self) -> Evaluation:
        """The candidate's figures. Raises GateError if it has none."""
        return _evaluation(self.candidate)

    @cached_property
    def theirs(self) -> Evaluation:
        """The champion's. Raises GateError if it has none."""
        assert self.champion
        return _evaluation(self.champion)

    @cached_property
    def metric(self) -> str:
        """Return the name of the figure that decides. Raises GateError."""
        return _choose(self.ours, self.terms.metric, self.candidate)

    @property
    def mine(self) -> float:
        """The candidate's figure."""
        return self.ours.metrics[self.metric]

    @property
    def why(self) -> str:
        """What the figures say, in one line, of a candidate that has passed."""
        if self.champion is None:
            return f"{self.metric} {self.mine:g}, the first"
        other = self.theirs.metrics[self.metric]
        word = "equals" if self.mine == other else self.better
        return f"{self.metric} {self.mine:g} {word} {other:g} of version {self.champion.version}"

    @property
    def better(self) -> str:
        """Where a better figure is: below or above."""
        return "below" if lower_is_better(self.metric) else "above"

    def is_worse(self, figure: float, than: float) -> bool:
        """Return whether `figure` of the metric is worse; NaN is."""
        return not (figure <= than if lower_is_better(self.metric) else figure >= than)


def checked(case: Case) -> Report:
    """Ask all of `CHECKS`; return what the report says of them. Raises GateError at the first that fails."""
    report: Report = {}
    for check in CHECKS:
        report |= check(case) or {}
    return report


def _has_its_run(case: Case) -> None:
    """The run that it is from is there: a report of its promotion goes to it."""
    from mlflow.exceptions import MlflowException

    try:
        stage = case.client.get_run(case.candidate.run_id or "").info.lifecycle_stage
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        stage = "gone"
    if stage != "active":
        run = case.candidate.run_id
        state = f"is {stage}: type `mlflow runs restore --run-id {run}`" if stage == "deleted" else "does not exist"
        raise GateError(f"{named(case.candidate)}: its run {run} {state}")


def _was_not_rolled_back(case: Case) -> None:
    """`rollback` has not taken it back: a nightly promotion must not undo that."""
    if case.candidate.tags.get("validation_status") == "rolled_back" and not case.terms.again:
        raise GateError(
            f"{named(case.candidate)} was rolled back: register a better version, or add --again to promote this one all the "
            "same"
        )


def _has_figures(case: Case) -> None:
    """It was evaluated: it has the figure that decides, and each of its figures is one that can be."""
    _ = case.metric


def _is_within_the_limit(case: Case) -> None:
    """Its figure is as good as `--limit`."""
    limit = case.terms.limit
    if limit is not None and case.is_worse(case.mine, limit):
        raise GateError(f"{named(case.candidate)}: {case.metric} {case.mine:g} is not good enough, --limit is {limit:g}")


def _has_something_to_be_measured_by(case: Case) -> None:
    """There is a champion, a limit, or the word that this is the first."""
    terms, name = case.terms, case.candidate.name
    if case.champion is None and terms.limit is None and not terms.first:
        raise GateError(
            f"{name} has no {terms.alias} to compare with: type --limit VALUE for {case.metric} ({case.mine:g}), or --first"
        )
    if case.champion and terms.first:
        raise GateError(f"--first: {name} has a {terms.alias} already, version {case.champion.version}; leave it out")


def _was_evaluated_alike(case: Case) -> None:
    """Its figures and the champion's are by one recipe."""
    if case.champion and case.theirs.recipe_id != case.ours.recipe_id:
        ids = [f"recipe_id {case.ours.recipe_id}, not {case.theirs.recipe_id}"]
        raise GateError(
            f"{named(case.candidate)} and {named(case.champion)} were evaluated otherwise, so their figures do not compare: "
            + "; ".join(_differences(case.ours.recipe, case.theirs.recipe) or ids)
        )


def _has_seen_the_same_data(case: Case) -> None:
    """It was trained on the champion's data set."""
    if case.champion is None or case.terms.other_dataset:
        return
    data = [version.tags.get("dataset_fingerprint", "none")[:12] for version in (case.candidate, case.champion)]
    if data[0] != data[1]:
        raise GateError(
            f"{named(case.candidate)} was trained on other data ({data[0]}) than {named(case.champion)} ({data[1]}): "
            "type --other-dataset if that is meant"
        )


def _is_better(case: Case) -> Report:
    """Its figure is better than the champion's."""
    ours, metric = case.ours, case.metric
    figures: Report = {"metric": metric, "candidate": case.mine, "recipe_id": ours.recipe_id, "recipe": ours.recipe}
    if case.champion:
        other = case.theirs.metrics.get(metric, math.nan)
        if fault(metric, other):
            raise GateError(
                f"{named(case.champion)}, the {case.terms.alias}, has no finite {metric} that can be: evaluate and register it "
                "again"
            )
        said = f"{named(case.candidate)}: {metric} {case.mine:g}"
        if case.mine == other and not case.terms.allow_equal:
            raise GateError(f"{said} equals that of {named(case.champion)}; --allow-equal takes it")
        if case.is_worse(case.mine, other):
            raise GateError(f"{said} is not {case.better} {other:g} of {named(case.champion)}")
        figures["champion"] = other
    return {"figures": figures | {"why": case.why}}


def _is_what_was_registered(case: Case) -> Report:
    """Its files are those that were registered; it draws what it should, and serves by itself. Takes minutes."""
    return {"loaded": prove(case.client, case.candidate, case.say)}


CHECKS: tuple[Callable[[Case], Report | None], ...] = (
    _has_its_run,
    _was_not_rolled_back,
    _has_figures,
    _is_within_the_limit,
    _has_something_to_be_measured_by,
    _was_evaluated_alike,
    _has_seen_the_same_data,
    _is_better,
    _is_what_was_registered,
)


def _evaluation(version: "ModelVersion") -> Evaluation:
    where = f"{named(version)}, tag {evaluations.TAG}"
    try:
        found = evaluations.parse(version.tags[evaluations.TAG], where)
    except KeyError:
        raise GateError(
            f"{named(version)} has no tag {evaluations.TAG}: `biggan evaluate` its run, register it again"
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
            raise GateError(f"{named(candidate)}: {printable(name)} is {value:g}, {wrong}; evaluate it again")
    names = ", ".join(ours.metrics) or "nothing"
    distances = [name for name in ours.metrics if name.startswith("FID[")]
    if wanted is None and len(distances) != 1:
        raise GateError(f"{named(candidate)} has {names}: say which decides, with --metric")
    metric = wanted or distances[0]
    if metric not in ours.metrics:
        raise GateError(f"{named(candidate)} has no {metric}, it has {names}: evaluate it, or type another --metric")
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


def named(version: "ModelVersion") -> str:
    """Say which version: `birds version 3`."""
    return f"{version.name} version {version.version}"
