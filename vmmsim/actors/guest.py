"""One guest and all who act for it: kernel, balloon driver, hot-plug, self-ballooning, mode controller, vCPUs.

Only a holder: the simulation builds and connects them, and reaches them through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import simpy

    from vmmsim.actors.balloon import Balloon
    from vmmsim.actors.guest_churn import GuestChurn
    from vmmsim.actors.guest_compactor import GuestCompactor
    from vmmsim.actors.guest_os import GuestOs
    from vmmsim.actors.guest_swapper import GuestSwapper
    from vmmsim.actors.hotplug import Hotplug
    from vmmsim.actors.idle_sampling import IdleSampler
    from vmmsim.actors.mode_controller import ModeController
    from vmmsim.actors.reporting import Reporting
    from vmmsim.actors.self_balloon import SelfBalloon
    from vmmsim.actors.vcpu import Vcpus
    from vmmsim.actors.vm import VirtualMachine


@attrs.define(kw_only=True)
class Guest:
    """The actors of one VM."""

    vm: VirtualMachine
    os: GuestOs
    balloon: Balloon
    hotplug: Hotplug
    self_balloon: SelfBalloon
    compactor: GuestCompactor
    controller: ModeController
    churn: GuestChurn
    reporting: Reporting | None = None
    """None where the guest does not report free pages."""
    vcpus: Vcpus | None = None
    """None while no workload runs."""
    idle: IdleSampler | None = None
    """Estimates its active memory; None where no policy asks."""
    swapper: GuestSwapper | None = None
    """Decides what the guest swaps out; None without swap space, or while no workload runs."""
    ended: simpy.Event | None = None
    """Happens when the workload ends."""
