"""Several evaluations of one checkpoint: none is lost, and the one of the most samples comes first."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.runs import evaluations
from pipeline.runs.evaluation_document import Document
from pipeline.runs.evaluations import Evaluation, keep, new_tags, of_run, of_tags, of_weights, offer
from tests.support.evaluation_documents import make_document


def document(recipe: str, samples: int, seed: int = 0, weights: str = "w", **metrics: float) -> Document:
    recipe_id = f"{recipe}{samples}".ljust(16, "0")
    figures = {f"{name}[x]": value for name, value in metrics.items()} or {"FID[x]": float(samples)}
    return make_document(figures, samples=samples, seed=seed, weights_sha256=weights, recipe_id=recipe_id)


def evaluation(recipe: str, samples: int) -> Evaluation:
    found = evaluations.parse(json.dumps(document(recipe, samples).as_json()), "here")
    assert found
    return found


MADE = st.builds(document, st.sampled_from("abc"), st.sampled_from([100, 500]), st.sampled_from([0, 1]), st.sampled_from("vw"))


@pytest.mark.long
@given(made=st.lists(MADE, min_size=1, max_size=6))
def test_no_evaluation_is_lost_and_the_plain_file_has_the_most_samples(
    made: list[Document], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    plain = folder / "evaluation" / "0000001000.json"
    for one in made:
        place = Path(keep(str(plain), one, lambda line: None))
        assert json.loads(place.read_text()) == one.as_json()
    found = [json.loads(path.read_text()) for path in plain.parent.iterdir()]
    distinct = {json.dumps(one.as_json(), sort_keys=True) for one in made}
    assert {json.dumps(one, sort_keys=True) for one in found} == distinct and len(found) == len(distinct)
    assert json.loads(plain.read_text())["samples"] == max(one.samples for one in made)
    assert len(of_run(folder, lambda line: None)) == len(distinct)


def test_documents_of_earlier_versions_are_kept_and_other_files_are_refused(tmp_path: Path) -> None:
    plain, said = tmp_path / "0000001000.json", list[str]()
    plain.write_text(json.dumps({"images": 1000, "FID[x]": 5.0}))  # before recipes
    assert keep(str(plain), document("a", 100), said.append) == str(plain)
    (other,) = tmp_path.glob("0000001000-0-samples-*.json")
    assert json.loads(other.read_text()) == {"images": 1000, "FID[x]": 5.0}
    assert said == [f"kept: {other}, which was {plain} (0 samples)"]
    plain.write_text("[1, 2")
    with pytest.raises(ConfigError, match=r"is not a document of `biggan evaluate`: Invalid JSON: .*; move it elsewhere"):
        keep(str(plain), document("a", 100), said.append)
    assert plain.read_text() == "[1, 2"


def test_fewer_metrics_of_the_same_evaluation_do_not_remove_the_others(tmp_path: Path) -> None:
    plain = tmp_path / "0000001000.json"
    first = replace(document("a", 100, FID=1.0, IS=2.0), floor={"FID[x]": 0.1})
    keep(str(plain), first, lambda line: None)
    keep(str(plain), document("a", 100, FID=1.5), lambda line: None)
    assert json.loads(plain.read_text()) == replace(first, metrics={"FID[x]": 1.5, "IS[x]": 2.0}).as_json()


def test_what_keep_best_reads_is_replaced_by_more_samples_alone(tmp_path: Path) -> None:
    place = str(tmp_path / "evaluation.json")
    for one, written in (
        (document("a", 500), True),
        (document("b", 500), False),
        (document("a", 100), False),
        (document("a", 500), True),
        (document("c", 900), True),
    ):
        assert offer(place, one) is written
    assert json.loads(Path(place).read_text())["samples"] == 900


def test_tags_of_a_version_stand_beside_each_other_by_recipe() -> None:
    large, quick, larger = evaluation("a", 10_000), evaluation("b", 500), evaluation("c", 50_000)
    held = new_tags({}, [large])
    assert held == {"evaluation": large.as_tag()}
    held |= new_tags(held, [quick])
    assert held == {"evaluation": large.as_tag(), f"evaluation.{quick.recipe_id}": quick.as_tag()}
    assert new_tags(held, [quick]) == {}
    named = held | new_tags(held, [quick], named=True)
    assert [one.samples for one in of_tags(named, "")] == [500, 10_000]
    held |= new_tags(held, [larger, quick])
    assert [one.samples for one in of_tags(held, "")] == [50_000, 10_000, 500]
    assert new_tags({"evaluation": "torn"}, [quick]) == {"evaluation": quick.as_tag()}


def test_the_best_is_chosen_among_those_by_the_most_samples(tmp_path: Path) -> None:
    said = list[str]()
    found = [evaluation("a", 10_000), evaluation("b", 500)]
    assert evaluations.best(found, "FID[x]", said.append) is found[0]
    assert said == ["--best 'FID[x]': 1 evaluation by other recipes than 10,000 samples, recipe a100000000000000 not compared"]
    assert of_weights(found[::-1], "w") == found
    with pytest.raises(ConfigError, match="several evaluations of these weights: pass --evaluation FILE, one of here, here"):
        of_weights([*found, evaluation("c", 10_000)], "w")
