"""What goes wrong because of what the user gave, said in lines that the user can act on."""

from __future__ import annotations

import attrs


@attrs.frozen
class Problem:
    """One mistake in one place: where, what, and what would be right."""

    file: str
    """File or option the mistake is in; "" when there is none."""
    path: str
    """Key inside the file (``l2_tlb[0].ways``) or byte offset (``byte 640``); "" for the whole file."""
    message: str
    """What is wrong, and what would be right, without a final full stop."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.path, self.message) if part)


class BadInput(ValueError):
    """Raised for anything wrong with what the user gave; the command line turns it into exit 2.

    ``problems`` holds every mistake found, in the order of the input: one line each, no traceback.
    """

    def __init__(self, message: str, *, file: object = "", path: str = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem(str(file), path, message),)
        super().__init__(str(self.problems[0]))

    @classmethod
    def of(cls, problems: list[Problem]) -> BadInput:
        """Return one error that carries all of ``problems`` (at least one)."""
        assert problems, "an error needs a problem"
        error = cls(problems[0].message, file=problems[0].file, path=problems[0].path)
        error.problems = tuple(problems)
        error.args = ("\n".join(map(str, problems)),)
        return error


class Refused(Exception):
    """Raised when the model declines a verb; nothing was changed. A scenario file's refusal is recorded instead."""

    def __init__(self, verb: str, why: str, asked: str = "", possible: str = "", vm: str = "") -> None:
        # SimPy makes exceptions anew from their arguments for each process that waits.
        super().__init__(verb, why, asked, possible, vm)
        self.verb = verb
        """What was asked for, as scenarios call it."""
        self.why = why
        """What is in the way."""
        self.asked = asked
        """How much was asked for, exactly; "" if that is no question."""
        self.possible = possible
        """How much would be possible, exactly, so that it can be asked for; "" if that is no question."""
        self.vm = vm
        """Whose; "" for the host."""

    def __str__(self) -> str:
        of = f" of {self.vm}" if self.vm else ""
        amount = f"{self.asked} asked, " if self.asked else ""
        return f"{self.verb}{of}: {amount}{self.why}"
