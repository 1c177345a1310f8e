"""`biggan train --profile`: what a few updates do, operator by operator, for Perfetto or chrome://tracing."""

from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

from pipeline.engine.ranks import Ranks
from pipeline.storage.best_effort import best_effort

_SKIPPED, _WARM = 2, 1
_ROWS = 20


def trace(folder: Path, ranks: Ranks, updates: int, say: Callable[[str], None]) -> profile:
    """A profiler to enter, whose `step` is called after each update: it records `updates` of them after three.

    Each rank writes `folder`/rank00000.json.gz and so on; rank 0 says which operators took longest.
    """
    cuda = ProfilerActivity.CUDA in supported_activities()

    def write(done: profile) -> None:
        path = folder / f"rank{ranks.rank:05d}.json.gz"
        with best_effort(path):
            folder.mkdir(parents=True, exist_ok=True)
            done.export_chrome_trace(str(path))
            if ranks.main:
                say(f"the trace is {path}, one of each rank beside it")
        if ranks.main:
            by = "self_device_time_total" if cuda else "self_cpu_time_total"
            say(f"{updates} updates, by their own time:")
            say(done.key_averages().table(sort_by=by, row_limit=_ROWS, max_name_column_width=40))

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    when = schedule(wait=_SKIPPED, warmup=_WARM, active=updates, repeat=1)
    return profile(activities=activities, schedule=when, on_trace_ready=write)
