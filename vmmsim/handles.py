"""VMs as scripts hold them. Every verb of a handle is a started ``simpy.Process``: see ``verbs``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmmsim import strict
from vmmsim.addresses import parse_bytes, write_duration, write_rate
from vmmsim.errors import BadInput
from vmmsim.scenario.events import MigrateEvent

if TYPE_CHECKING:
    import simpy

    from vmmsim.actors.guest import Guest
    from vmmsim.verbs import Verbs


def bytes_of(size: str | int) -> int:
    """Return the bytes that "64GiB" or a whole number mean; ``BadInput`` for anything else."""
    if isinstance(size, str):
        return parse_bytes(size)
    if type(size) is int:
        return size
    raise BadInput(f'{size!r} is not a size; write e.g. "64GiB", or whole bytes')


def migrate_event(vm: str, arguments: dict[str, Any]) -> MigrateEvent:
    """Return the event that keywords describe: as a file's, or whole bytes a second and nanoseconds."""
    write = {"bandwidth": write_rate, "downtime": write_duration}
    written = {
        key: write[key](value) if type(value) is int and key in write else value for key, value in arguments.items()
    }
    return strict.structure(MigrateEvent, {"at": "0s", "do": "migrate", "vm": vm, **written}, "migrate")


class Handle:
    """A VM that runs, as scripts see it. Every verb returns a started ``simpy.Process``."""

    def __init__(self, verbs: Verbs, guest: Guest) -> None:
        self._verbs = verbs
        self._guest = guest
        self.balloon = BalloonHandle(verbs, guest)
        """Its balloon: ``inflate``, ``deflate``, ``target``, ``auto``."""

    @property
    def name(self) -> str:
        """Its name."""
        return self._guest.vm.name

    @property
    def mode(self) -> str:
        """The mode it has now."""
        return self._guest.vm.mode

    @property
    def running(self) -> bool:
        """Whether it runs still."""
        return self._guest.vm.running

    @property
    def progress(self) -> int:
        """Accesses its workload has made."""
        return self._guest.vm.progress

    def want(self, mode: str) -> simpy.Process:
        """Want another mode from now on; the process ends when the VM has it."""
        return self._verbs.start(self._verbs.wanting(self._guest, mode))

    def self_balloon(self, size: str | int) -> simpy.Process:
        """Exchange scattered free memory for a contiguous range at the end of gPA."""
        return self._verbs.start(self._verbs.self_ballooning(self._guest, bytes_of(size)))

    def hot_add(self, size: str | int) -> simpy.Process:
        """Add memory at the end of gPA, in blocks of 128 MiB."""
        return self._verbs.start(self._verbs.hot_adding(self._guest, bytes_of(size)))

    def hot_remove(self, size: str | int) -> simpy.Process:
        """Take memory away from the end of gPA, in blocks of 128 MiB."""
        return self._verbs.start(self._verbs.hot_removing(self._guest, bytes_of(size)))

    def reclaim_io_gap(self) -> simpy.Process:
        """Move the memory below the I/O gap to the end of gPA, as far as it can; the value is how many bytes moved."""
        return self._verbs.start(self._verbs.reclaiming_io_gap(self._guest))

    def compact(self) -> simpy.Process:
        """Let the guest compact all of its memory once; the value is how many pages moved."""
        return self._verbs.start(self._verbs.compacting_guest(self._guest))

    def load(self, share: float | None) -> simpy.Process:
        """Run the workload at a share of full load; None follows its schedule."""
        return self._verbs.start(self._verbs.loading(self._guest, share))

    def migrate(self, **arguments: Any) -> simpy.Process:
        """Migrate it: the arguments of a scenario's ``do = "migrate"``; the value says what came of it."""
        return self._verbs.start(self._verbs.migrating(migrate_event(self.name, arguments)))

    def shutdown(self) -> simpy.Process:
        """Shut it down."""
        return self._verbs.start(self._verbs.shutting_down(self.name))


class BalloonHandle:
    """The balloon of a VM."""

    def __init__(self, verbs: Verbs, guest: Guest) -> None:
        self._verbs = verbs
        self._guest = guest

    @property
    def size_bytes(self) -> int:
        """What it holds now."""
        return self._guest.vm.ballooned_pages << 12

    def inflate(self, size: str | int) -> simpy.Process:
        """Ask the guest for ``size`` more; refused if it cannot give as much."""
        pages = bytes_of(size) >> 12
        return self._verbs.start(self._verbs.inflating(self._guest, pages))

    def deflate(self, size: str | int) -> simpy.Process:
        """Give ``size`` back to the guest."""
        pages = max(self._guest.vm.ballooned_pages - (bytes_of(size) >> 12), 0)
        self._guest.balloon.by_event = True
        return self._verbs.start(self._guest.balloon.resizing(pages))

    def target(self, memory: str | int) -> simpy.Process:
        """Let the guest keep ``memory``, and ask for the rest."""
        pages = max(self._guest.vm.memory_pages - (bytes_of(memory) >> 12), 0)
        return self._verbs.start(self._verbs.ballooning(self._guest, pages))

    def auto(self) -> simpy.Process:
        """Give it back to the host's policy; without one the guest has all of its memory again."""
        return self._verbs.start(self._verbs.returning_to_policy(self._guest))
