import threading
from collections.abc import Callable

import pytest

from pipeline.errors import ConfigError, StorageError
from pipeline.storage import retry
from pipeline.storage.store_errors import ChangedError, FirstContactError


def failing(*errors: Exception) -> tuple[Callable[[], str], list[None]]:
    """(a function that raises these, one after the other, and then returns; its calls)."""
    left, calls = list(errors), list[None]()

    def ask() -> str:
        calls.append(None)
        if left:
            raise left.pop(0)
        return "there"

    return ask, calls


def test_what_may_pass_is_asked_again_and_nothing_else() -> None:
    ask, calls = failing(StorageError("busy"), StorageError("busy"))
    assert retry.patiently(ask, "s3://a", 60) == "there" and len(calls) == 3
    ask, calls = failing(ConfigError("no"))
    with pytest.raises(ConfigError, match=r"^no$"):
        retry.patiently(ask, "s3://a", 60)
    assert len(calls) == 1


def test_only_one_of_nested_loops_asks_again() -> None:
    ask, calls = failing(*[StorageError("busy")] * 9)
    with pytest.raises(StorageError, match=r"^busy \(asked again for 0 s\)$"):
        retry.patiently(lambda: retry.patiently(ask, "s3://a", 60), "s3://a", 0.0)
    assert len(calls) == 1


def test_who_stops_waits_no_longer() -> None:
    ask, calls = failing(*[StorageError("busy")] * 9)
    stop = threading.Event()
    stop.set()
    with pytest.raises(StorageError, match=r"^busy$"):
        retry.patiently(ask, "s3://a", 60, stop=stop)
    assert len(calls) == 1


def test_an_unknown_host_is_final_until_it_was_known() -> None:
    """A typo is said at once; a resolver that fails for a while ends no training."""
    ask, calls = failing(FirstContactError("no host"))
    with pytest.raises(ConfigError, match=r"^no host$"):
        retry.patiently(ask, "http://new", 60)
    assert len(calls) == 1
    assert retry.patiently(ask, "http://new", 60) == "there"
    ask, calls = failing(FirstContactError("no host"))
    assert retry.patiently(ask, "http://new", 60) == "there" and len(calls) == 2


@pytest.mark.long
def test_a_changed_object_is_read_again_as_often_as_allowed() -> None:
    for changes, calls_made in ((0, 1), (3, 4)):
        ask, calls = failing(*[ChangedError("changed")] * 9)
        with pytest.raises(ChangedError):
            retry.patiently(ask, "s3://a", 60, changes=changes)
        assert len(calls) == calls_made


def test_a_wait_is_said_once_however_many_wait(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(retry, "SAY_AFTER", 0.0)
    threads = [
        threading.Thread(target=retry.patiently, args=(failing(*[StorageError("busy")] * 2)[0], "s3://said", 60))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [record.getMessage() for record in caplog.records if "s3://said" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("waiting for s3://said: busy; trying again until ")
