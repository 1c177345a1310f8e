"""Labels in texts: what they mean, and what is refused because it could mean two things."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.labels import empty_classes, number_labels, read_names
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("texts", "given", "renumber", "names", "numbers"),
    [
        (["0", "1", "2"], None, False, ("0", "1", "2"), [0, 1, 2]),
        (["1", "2", "3"], None, False, ("0", "1", "2", "3"), [1, 2, 3]),
        (["1", "2", "3"], None, True, ("1", "2", "3"), [0, 1, 2]),
        (["0.0", "10.0", "2.", "1e0", "3.000e+00"][:3], None, True, ("0", "2", "10"), [0, 2, 1]),
        (["0000", "0002", "1"], None, False, ("0", "1", "2"), [0, 2, 1]),
        (["3.0e+00", "0", "1", "2"], None, False, ("0", "1", "2", "3"), [3, 0, 1, 2]),
        (["1", "90", "203092"], None, True, ("1", "90", "203092"), [0, 1, 2]),
        (["02691156", "02773838"], None, True, ("02691156", "02773838"), [0, 1]),
        (["dog", "cat"], None, False, ("cat", "dog"), [1, 0]),
        (["dog", "cat"], ("dog", "bird", "cat"), False, ("dog", "bird", "cat"), [0, 2]),
        (["1", "2"], ("1", "2"), False, ("1", "2"), [0, 1]),  # as numbers they would be beyond the end
        (["1", "0"], ("a", "b", "c"), False, ("a", "b", "c"), [1, 0]),
        (["[a]"], ("[a]",), False, ("[a]",), [0]),
    ],
)
def test_what_labels_mean(
    texts: list[str], given: tuple[str, ...] | None, renumber: bool, names: tuple[str, ...], numbers: list[int]
) -> None:
    found = number_labels(Counter(texts), given, renumber)
    assert (found.names, [found.numbers[text] for text in texts], found.wrong) == (names, numbers, {})


@pytest.mark.parametrize(
    ("texts", "given", "wrong"),
    [
        (["0", "-1"], None, {"-1": "below 0"}),
        (["0", "1", "3.5"], None, {"3.5": "no whole number"}),
        (["0", "[0, 1]", "0 1", "1;0", "[1.]", "(2,)", '{"a": 1}'], None, dict.fromkeys(["[0, 1]", "0 1", "1;0"], "is a list")),
        (["0", "0", "cat"], None, {"cat": "others have numbers"}),
        (["0", "cat", "dog"], None, {"0": "others have names"}),
        (["0", "7"], ("x", "y"), {"7": "--classes has 2 names"}),
        (["x", "z"], ("x", "y"), {"z": "--classes has 2 names"}),
    ],
)
def test_what_is_no_label(texts: list[str], given: tuple[str, ...] | None, wrong: dict[str, str]) -> None:
    found = number_labels(Counter(texts), given, False)
    assert set(found.numbers) | set(found.wrong) == set(texts) and not set(found.numbers) & set(found.wrong)
    assert all(says in found.wrong[text][0] for text, says in wrong.items())


@pytest.mark.parametrize(
    ("texts", "given", "says"),
    [
        (["1", "90", "203092"], None, "3 numbers from 1 to 203092, which would be 203,093 classes, 203,090 of them without"),
        (["7"], None, "add --renumber to have 1 class that keep"),
        (["0", "99999999999"], None, "add --renumber to have 2 classes"),
        (["0", "1"], ("1", "0"), "the label 0 may be line 1 or the name in line 2"),
    ],
)
def test_what_can_be_read_in_two_ways(texts: list[str], given: tuple[str, ...] | None, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        number_labels(Counter(texts), given, False)
    assert says in str(caught.value)


@given(
    st.dictionaries(st.text(st.sampled_from("0123456789.-+e[], ax"), min_size=1, max_size=8), st.integers(1, 9)), st.booleans()
)
def test_each_text_has_one_meaning(counts: dict[str, int], renumber: bool) -> None:
    try:
        found = number_labels(Counter(counts), None, renumber)
    except ConfigError as error:
        assert "which would be" in str(error) and not renumber
        return
    assert set(found.numbers) | set(found.wrong) == set(counts) and not set(found.numbers) & set(found.wrong)
    assert len(set(found.names)) == len(found.names) and all(0 <= n < len(found.names) for n in found.numbers.values())
    assert len(found.names) <= 2 * len(set(found.numbers.values()))


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"tench\ncrane\n\n", ("tench", "crane")),
        (b"\xef\xbb\xbftench\r\ncrane\r\n", ("tench", "crane")),
        ("tench, Tinca\n crane\u2028bird ".encode(), ("tench, Tinca", "crane\u2028bird")),
        (b"tench\ncrane\njay\ncrane\n", "lines 2 and 4 are both 'crane': tell them apart"),
        (b"tench\n\ncrane\n", "line 2 is empty: write a name for label 1"),
        (b"", "line 1 is empty"),
        (b"\xff\xfet\0", "cannot read it as UTF-8"),
    ],
)
def test_names_in_a_file(tmp_path: Path, content: bytes, names: "tuple[str, ...] | str") -> None:
    (tmp_path / "names.txt").write_bytes(content)
    if isinstance(names, tuple):
        assert read_names(str(tmp_path / "names.txt")) == names
        return
    with pytest.raises(ConfigError) as caught:
        read_names(str(tmp_path / "names.txt"))
    assert names in str(caught.value)


def test_classes_without_images_are_named() -> None:
    assert empty_classes(("a", "b"), (1, 2)) == ""
    assert empty_classes(("0", "1"), (0, 2), numbered=True) == "1 class has no image: 0; if labels count from 1, add --renumber"
    many = tuple(map(str, range(20)))
    assert empty_classes(many, (0,) * 20).startswith("20 classes have no image: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...")
