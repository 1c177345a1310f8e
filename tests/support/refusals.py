"""Every refusal that the tests of a session raise, so that the advice of each is checked (`tests.support.advice`)."""

import sys

from pipeline.errors import UserError


class Refusals:
    """Every UserError that is made in this process, by the line that makes it: what a test may check when it ends."""

    def __init__(self) -> None:
        self.places: dict[tuple[str, int], list[str]] = {}
        self._unchecked: list[str] = []

    def watch(self) -> None:
        """Begin. A few messages of each line are enough: property tests make thousands."""
        made = UserError.__init__

        def noted(error: UserError, *args: object) -> None:
            made(error, *args)
            frame = sys._getframe(1)
            said = self.places.setdefault((frame.f_code.co_filename, frame.f_lineno), [])
            if len(said) < 5 and (message := str(error)) not in said:
                said.append(message)
                self._unchecked.append(message)

        UserError.__init__ = noted  # type: ignore[method-assign, assignment]

    def faults(self) -> list[str]:
        """What is wrong with the advice of the messages since the last call."""
        if not self._unchecked:
            return []
        from tests.support.advice import wrong  # imports torch

        messages, self._unchecked = self._unchecked, []
        return [f"{fault}: {message}" for message in messages for fault in wrong(message)]

    def summary(self) -> str:
        """For the end of a session."""
        from tests.support.advice import advice

        advising = sum(any(advice(message) for message in said) for said in self.places.values())
        return f"advice: {len(self.places)} refusals were raised, {advising} with advice, all of which the program takes"


REFUSALS = Refusals()
