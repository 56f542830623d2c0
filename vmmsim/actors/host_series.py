"""Time series that go on whatever VMs do: the host's memory and its contiguity, and each VM's state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmsim.actors.clock import Pause, Turn
from vmmsim.actors.measuring import write_vm_row
from vmmsim.memory.frames import Kind

if TYPE_CHECKING:
    from collections.abc import Generator

    from simpy import Environment, Event

    from vmmsim.actors.compactor import Compactor
    from vmmsim.actors.sharing import Sharing
    from vmmsim.actors.vmm import Vmm
    from vmmsim.decisions import Recorder


class HostSeries:
    """Writes rows of the host table."""

    def __init__(
        self, env: Environment, vmm: Vmm, compactor: Compactor, recorder: Recorder, sharing: Sharing | None = None
    ) -> None:
        self.env = env
        self.vmm = vmm
        self.compactor = compactor
        self.recorder = recorder
        self.sharing = sharing

    def sampling(self, every_ns: int) -> Generator[Event, object, None]:
        """Write a row now and then, for ever."""
        while True:
            self.record()
            yield Pause(self.env, every_ns, Turn.MEASURE)

    def record(self) -> None:
        """Write a row."""
        host = self.vmm.host
        fragmentation = host.fragmentation()
        for vm in self.vmm.vms.values():
            if vm.kernel_table is not None:
                write_vm_row(self.recorder, vm)
        self.recorder.host_row(
            free_blocks=[int(count) for count in fragmentation.nr_free],
            free_bytes=host.free_pages << 12,
            largest_free_bytes=host.largest_free_run() << 12,
            unusable_2m=fragmentation.unusable_index(9) / 1000,
            page_table_bytes=host.count(kind=Kind.TABLE) << 12,
            bad_frames=host.count(kind=Kind.BAD),
            moved_bytes=self.compactor.moved_pages << 12,
            **(self.sharing.columns() if self.sharing is not None else {}),
        )
