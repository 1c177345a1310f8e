"""Saves a run while it trains: the step waits for a copy to host memory, a thread on each rank does the rest.

Each rank's thread writes its files and tells rank 0, whose thread commits when it has heard of all, and tells the others.
They talk by letters (`pipeline.checkpoint.save_mail`). One save is in flight at most.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline import storage
from pipeline.checkpoint import format, pruning, rank_files
from pipeline.checkpoint.commit_document import Files
from pipeline.checkpoint.failpoints import fail_point
from pipeline.checkpoint.fencing import Fence, FencedError
from pipeline.checkpoint.format import Progress, Shapes
from pipeline.checkpoint.retention import CheckpointConfig
from pipeline.checkpoint.save_mail import SaveMail, SaveReport, failure
from pipeline.engine.ranks import Ranks
from pipeline.engine.slices import Slice
from pipeline.errors import StorageError, UserError

log = logging.getLogger(__name__)
Parts = Mapping[str, list[Slice]]

_PAUSES = (1.0, 5.0, 20.0)
"""Seconds before a save that must succeed is tried again."""


@dataclass
class _Snapshot:
    """What is in flight."""

    progress: Progress
    parts: Parts
    state: Mapping[str, Any]
    copied: torch.cuda.Event | None


class Saver:
    """Saves a run that stands at `images`. All ranks make the same calls; every failure is raised on all of them.

    Rank 0's thread calls `committed` with the images of each checkpoint as soon as it is one.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        fence: Fence,
        ranks: Ranks,
        images: int,
        committed: Callable[[int], object] = lambda _: None,
    ):
        self.config, self.fence, self.ranks, self._committed = config, fence, ranks, committed
        self.saved = images
        """Images that a crash now would not lose."""
        self._failures = 0
        self._serial = 0
        self._thread: threading.Thread | None = None
        self._outcome = SaveReport()
        self._last: _Snapshot | None = None
        self._buffers: dict[str, Tensor] = {}
        self._told: set[str] = set()
        self._mail = SaveMail(ranks)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()

    def save(self, progress: Progress, parts: Parts, state: Mapping[str, Any]) -> None:
        """Begin a save of this rank's slices; first waits for the one before.

        A failure of the store is a warning, until `max_loss` images are at risk: then this waits, tries again, and raises
        StorageError. Raises FencedError if another training has taken over.
        """
        self.check()
        self._last = _Snapshot(progress, self._copy(parts), state, self._event())
        fail_point("snapshot")
        self._start()
        if progress.images + self.config.every - self.saved > self.config.loss_limit:
            self._insist()

    def check(self) -> None:
        """Wait for the save in flight. Raises FencedError, or RuntimeError for a bug, on all ranks alike."""
        if self._thread is None or self._last is None:
            return
        self._thread.join()
        self._thread = None
        kind, message = self._outcome.kind, self._outcome.message
        if kind in ("fenced", "bug"):
            dist.barrier()  # rank 0 keeps the mail, which the others must have read before its process ends
            raise FencedError(message) if kind == "fenced" else RuntimeError(message)
        if kind == "saved":
            self.saved, self._failures = self._last.progress.images, 0
            return
        self._failures += 1
        if self.ranks.main and self._failures & (self._failures - 1) == 0:  # the 1st, 2nd, 4th, ... in a row
            log.warning(
                "no checkpoint at %d images (failure %d in a row; the last one is at %d, the run stops when %d images are at "
                "risk): %s",
                self._last.progress.images,
                self._failures,
                self.saved,
                self.config.loss_limit,
                message,
            )

    def close(self) -> None:
        """Wait for the last save, and insist on it. Raises StorageError if the store does not take it."""
        self.check()
        if self._last and self.saved != self._last.progress.images:
            self._insist()
        if self.ranks.main:
            self.fence.release()
        dist.barrier()  # rank 0 keeps the mail, which the others must have read

    def _insist(self) -> None:
        assert self._last
        for pause in (*_PAUSES, None):
            self.check()
            if self.saved == self._last.progress.images:
                return
            if pause is None:
                break
            time.sleep(pause)
            self._start()
        raise StorageError(
            f"cannot save {self._last.progress.images} images, the last checkpoint is at {self.saved}: "
            f"{self._outcome.message}; then the same command goes on from there"
        )

    def _copy(self, parts: Parts) -> Parts:
        """The slices in host memory, in buffers that are used again."""
        copies = {}
        for part, slices in parts.items():
            count = sum(len(s.data) for s in slices)
            if part not in self._buffers or len(self._buffers[part]) != count:
                self._buffers[part] = torch.empty(count, pin_memory=self.ranks.device.type == "cuda")
            places = self._buffers[part].split([len(s.data) for s in slices])
            for s, place in zip(slices, places, strict=True):
                place.copy_(s.data, non_blocking=True)
            copies[part] = [Slice(s.name, s.shape, s.offset, place) for s, place in zip(slices, places, strict=True)]
        return copies

    def _event(self) -> torch.cuda.Event | None:
        """What the thread waits for: the stream itself keeps the next update behind the copy."""
        if self.ranks.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _start(self) -> None:
        self._serial += 1
        self._thread = threading.Thread(target=self._run, args=(self._last, self._serial), name="saver", daemon=True)
        self._thread.start()

    def _run(self, snapshot: _Snapshot, serial: int) -> None:
        """This rank's thread."""
        folder = storage.join(self.fence.uri, format.folder_name(snapshot.progress.images, self.fence.number))
        try:
            if snapshot.copied:
                snapshot.copied.synchronize()
            report = SaveReport()
            for part, slices in snapshot.parts.items():
                report.files.update(rank_files.write_part(folder, part, self.ranks.rank, slices))
                report.shapes[part] = {s.name: list(s.shape) for s in slices}
        except Exception as error:
            report = failure(error)
        try:
            self._outcome = self._agree(folder, snapshot, serial, report)
        except Exception as error:
            self._outcome = failure(error)

    def _agree(self, folder: str, snapshot: _Snapshot, serial: int, report: SaveReport) -> SaveReport:
        """Tell rank 0, and hear what became of it; on rank 0, commit and tell the others."""
        if not self.ranks.main:
            self._mail.tell(serial, report)
            fail_point("reported")
            return self._mail.outcome(serial)
        try:
            end = self._commit(folder, snapshot, serial, report)
        except Exception as error:
            end = failure(error)
        if end.kind == "refused":  # before anybody begins to write there again
            _clear_up(folder)
        self._mail.announce(serial, end)
        if end.kind == "saved":
            self._settle(folder, snapshot.progress.images)
        return end

    def _commit(self, folder: str, snapshot: _Snapshot, serial: int, own: SaveReport) -> SaveReport:
        """Rank 0: wait for all, then commit."""
        reports = [own, *(self._mail.told(serial, rank) for rank in range(1, self.ranks.world_size))]
        if failed := [report for report in reports if report.kind != "saved"]:
            return sorted(failed, key=lambda report: report.kind)[0]  # a bug before a store's failure
        files: Files = {name: row for report in reports for name, row in report.files.items()}
        shapes: Shapes = {}
        for report in reports:
            for part, tensors in report.shapes.items():
                shapes.setdefault(part, {}).update(tensors)
        files |= rank_files.write_state(folder, snapshot.progress, snapshot.state)
        fail_point("fence")
        self.fence.check()
        format.commit(folder, files, {part: tensors for part, tensors in shapes.items() if tensors})
        return SaveReport()

    def _settle(self, folder: str, images: int) -> None:
        """After a commit: note it, and make room."""
        self._committed(images)
        try:
            others = pruning.retain(self.fence.uri, format.load(folder), self.config)
            if new := [other for other in others if other not in self._told]:
                self._told.update(new)
                more = f" (and {len(new) - 4} more)" if len(new) > 4 else ""
                log.warning("not checkpoints of this run, and never removed: %s%s", ", ".join(new[:4]), more)
        except (UserError, OSError) as error:
            log.warning("old checkpoints stay for now: %s", error)


def _clear_up(folder: str) -> None:
    """Delete what was written in vain: on a full disk it takes the next checkpoint's place, and the run's last words'."""
    with contextlib.suppress(UserError, OSError):
        if not storage.exists(storage.join(folder, format.COMMIT)):  # only the answer to a commit may have been lost
            rank_files.remove(folder)
