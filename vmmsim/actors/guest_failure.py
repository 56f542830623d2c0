"""What a guest does with a machine check: Linux's memory_failure, by what the page was used for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmmsim.memory.frames import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmsim.actors.vm import VirtualMachine
    from vmmsim.decisions import Recorder


HARMLESS: Final = "nothing is lost"


class GuestFailure:
    """Hears the machine checks of all guests."""

    def __init__(self, recorder: Recorder, kill: Callable[[VirtualMachine, str], None]) -> None:
        self.recorder = recorder
        self.kill = kill

    def memory_failure(self, vm: VirtualMachine, gfn: int, cause: int) -> str:
        """Let the guest lose the contents of ``gfn``; return what it came to.

        Free and ballooned pages, and clean page cache, lose nothing. A process that owns the page is killed, which
        ends the workload; kernel memory and page tables take the guest down.
        """
        kind = Kind(int(vm.guest.frames["kind"][gfn]))
        if kind in (Kind.FREE, Kind.BALLOON, Kind.HOLE, Kind.CACHE):
            said = HARMLESS
        elif kind is Kind.USER:
            said = "its process is killed"
        else:
            said = "the guest panics"
        lost = said != HARMLESS
        why = f"machine check in {kind.name.lower()} memory of the guest: {said}"
        self.recorder.decide(
            "guest",
            "memory_failure",
            vm=vm.name,
            asked=f"gfn {gfn}",
            outcome="failed" if lost else "done",
            why=why,
            cause=cause,
        )
        if lost:
            self.kill(vm, why)
        return said
