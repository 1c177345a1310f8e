"""Where objects still travel as pickles."""

from pathlib import Path

PACKAGES = ("pipeline", "jobs", "model")
ROOT = Path(__file__).parents[3]


def test_only_networks_travel_as_pickles() -> None:
    """docs/clouds.md names them."""
    calls = ("broadcast_object_list(", "gather_object(", "scatter_object_list(")
    found = {
        file.name
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        if any(f"dist.{call}" in file.read_text() or f"distributed.{call}" in file.read_text() for call in calls)
    }
    assert found == {"worker_pool.py"}
