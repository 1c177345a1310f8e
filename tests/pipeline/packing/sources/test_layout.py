from hypothesis import given
from hypothesis import strategies as st

from pipeline.packing.sources.layout import distinct, split_name, split_within


def test_names_of_splits() -> None:
    numbered = ("train-00000-of-00001", "Train_0001-of-0002", "train-00000-of-00001-b42a775f407cee45")
    assert {split_name(name) for name in ("train", "Training", "TRAIN", *numbered)} == {"train"}
    assert split_name("unsupervised-00000-of-00001") == "unsupervised"
    assert {split_name(name) for name in ("trains", "my_train", "test tube")} == {None}
    assert [split_within(name) for name in ("cifar10-train", "train_b", "VAL2017")] == ["train", "train", "val"]
    assert {split_within(name) for name in ("a-train-test", "trainer")} == {None}


def test_equal_names_are_told_apart() -> None:
    assert distinct(["crane", "jay", "crane", "crane (2)", "crane"]) == ("crane", "jay", "crane (3)", "crane (2)", "crane (4)")
    assert distinct(["cafe\u0301", "caf\u00e9", "caf\u00e9"]) == ("cafe\u0301", "caf\u00e9 (2)", "caf\u00e9 (3)")
    assert distinct(["", "a", " ", "class 0"]) == ("class 0 (2)", "a", "class 2", "class 0")


@given(st.lists(st.sampled_from(["a", "a (2)", "a (3)", "", " ", "class 1", "class 1 (2)"]), max_size=8))
def test_names_of_classes_are_never_equal_or_empty(names: list[str]) -> None:
    found = distinct(names)
    assert len(found) == len(set(found)) == len(names)
    assert all(name.strip() for name in found)
    "".join(found).encode()
    if len(set(names)) == len(names) and all(name.strip() for name in names):
        assert found == tuple(names)
