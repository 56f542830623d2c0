"""Frozen descriptions of a scenario: a host, its VMs, what runs in them, what happens when, and what is measured.

Data only, each part valid from birth; what the parts do not allow together is found by ``scenario_checks``. The keys
of scenario files are the fields' names without units (``strict``). Times count from the start of the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import attrs

from vmmsim.errors import BadInput
from vmmsim.hints import shown
from vmmsim.scenario.events import (
    EVENTS,
    BalloonEvent,
    BootEvent,
    CompactEvent,
    Event,
    FaultEvent,
    FaultKind,
    HotAddEvent,
    HotRemoveEvent,
    LoadEvent,
    MigrateEvent,
    ModeEvent,
    ReclaimIoGapEvent,
    SelfBalloonEvent,
    ShutdownEvent,
)
from vmmsim.scenario.host import (
    BALLOON_POLICIES,
    DRAM_RATES,
    BalloonPolicy,
    Compaction,
    Dimms,
    Faults,
    Host,
    Sharing,
    Swap,
)
from vmmsim.scenario.values import HOUR_NS, VmMode, check_known, check_positive, check_vm_name, is_user_code
from vmmsim.scenario.vm import KEPT_LOW_BYTES, LOW_BYTES, POLICIES, PROGRAMS, VM, Escape, LoadStep, Workload
from vmmsim.spelling import NO_KEY, REST

__all__ = [
    "BALLOON_POLICIES",
    "DRAM_RATES",
    "EVENTS",
    "KEPT_LOW_BYTES",
    "LOW_BYTES",
    "POLICIES",
    "PROGRAMS",
    "VM",
    "Actor",
    "BalloonEvent",
    "BalloonPolicy",
    "BootEvent",
    "CompactEvent",
    "Compaction",
    "Dimms",
    "Escape",
    "Event",
    "FaultEvent",
    "FaultKind",
    "Faults",
    "Host",
    "HotAddEvent",
    "HotRemoveEvent",
    "LoadEvent",
    "LoadStep",
    "Measure",
    "MigrateEvent",
    "ModeEvent",
    "ReclaimIoGapEvent",
    "Run",
    "Scenario",
    "SelfBalloonEvent",
    "Sharing",
    "ShutdownEvent",
    "Swap",
    "Sweep",
    "VmMode",
    "Workload",
    "is_user_code",
]


@attrs.frozen(kw_only=True)
class Run:
    """How long a life is lived, and how closely it is looked at."""

    until_ns: int = HOUR_NS
    """When the run ends, in nanoseconds of simulated time."""
    seed: int = 1
    """Seed of every stream of randomness."""
    detail: Literal["full", "lifetime"] = "full"
    """lifetime: only what the scenario names happens; no churn, no daemons; samples are taken on changes only."""
    scale: int = 1
    """Divides host, VMs, footprints and the reach of TLBs; a power of two. Results are marked as scaled."""
    stall_ns: int = HOUR_NS
    """Simulated time after which a run in which no VM makes progress is ended."""
    script: str | None = None
    """A life written in Python, beside the tables: ``file.py:function``."""
    costs: tuple[str, ...] = ("linear",)
    """Cost models: linear, hierarchy, or code of one's own. The first one drives time."""

    def __attrs_post_init__(self) -> None:
        check_positive(self.until_ns, "until")
        check_positive(self.stall_ns, "stall")
        if self.seed < 0:
            raise BadInput("must not be negative", path="seed")
        if self.scale < 1 or self.scale & (self.scale - 1):
            raise BadInput(f"{self.scale} is not a power of two", path="scale")
        if self.script is not None and not is_user_code(self.script):
            raise BadInput(f'{shown(self.script)} does not name a function; write e.g. "life.py:life"', path="script")
        if not self.costs:
            raise BadInput("name at least one cost model", path="costs")
        for n, cost in enumerate(self.costs):
            check_known(cost, ("linear", "hierarchy"), f"costs[{n}]")


@attrs.frozen(kw_only=True)
class Actor:
    """An actor of one's own, started with the run."""

    use: str
    """Code: ``file.py:Name``."""
    parameters: dict[str, Any] = attrs.field(factory=dict, metadata=REST)
    """Its arguments: all other keys of its table."""

    def __attrs_post_init__(self) -> None:
        if not is_user_code(self.use):
            raise BadInput(f'{shown(self.use)} does not name a class; write e.g. "backup.py:Nightly"', path="use")


@attrs.frozen(kw_only=True)
class Measure:
    """What is measured, and how closely: sampling of translation, and time series."""

    every_ns: int | None = None
    """Time between rows of the time series beyond those at changes; None chooses by the length of the run."""
    as_if: tuple[VmMode, ...] = ()
    """Modes that the same accesses are also translated in, each on a copy of the hardware."""
    window: int | None = None
    """Accesses measured in a sample, at least 1,000; None is the model's own."""
    complete: bool = False
    """Translate every access instead of samples: exact, and very slow."""
    epoch_share: float = 0.01
    """Share of a VM's mapped pages that may change before its rates are sampled anew."""

    def __attrs_post_init__(self) -> None:
        if self.every_ns is not None:
            check_positive(self.every_ns, "every")
        if len(set(self.as_if)) != len(self.as_if):
            raise BadInput("names a mode twice", path="as_if")
        if self.window is not None and self.window < 1000:
            raise BadInput(f"{self.window} accesses are too few for a sample; at least 1000", path="window")
        if not 0 < self.epoch_share <= 1:
            raise BadInput(f"{self.epoch_share:g} is not more than 0 and at most 1", path="epoch_share")


@attrs.frozen(kw_only=True)
class Sweep:
    """Runs of the same scenario with other values and seeds. ``vmmsim run`` runs the scenario itself only."""

    replications: int | None = None
    """Runs of each point, each with a seed of its own."""
    until_half_width: float | None = None
    """Instead: as many runs as make the confidence interval's half width this small."""
    show: tuple[str, ...] = ()
    """Results to be shown, such as ``vm.db.overhead``."""
    vary: dict[str, tuple[Any, ...]] = attrs.field(factory=dict)
    """Values for each path; all combinations are run."""
    arms: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    """Named alternatives: a value for each path."""

    def __attrs_post_init__(self) -> None:
        if self.replications is not None and self.until_half_width is not None:
            raise BadInput("replications says how many runs already; write one of them", path="until_half_width")
        if self.replications is not None:
            check_positive(self.replications, "replications")
        if self.until_half_width is not None:
            check_positive(self.until_half_width, "until_half_width")
        for path, values in self.vary.items():
            if not values:
                raise BadInput("an empty list has no value to run with", path=f"vary.{shown(path)}")


@attrs.frozen(kw_only=True)
class Scenario:
    """A whole scenario: a host, its VMs, what happens, and what is measured.

    One that was loaded from a file is checked, and has each VM that ``count`` makes and each event singly.
    """

    name: str = attrs.field(default="", metadata=NO_KEY)
    """What it is called: the file's name without ``.toml``."""
    folder: Path | None = attrs.field(default=None, metadata=NO_KEY, eq=False)
    """Folder that paths in the scenario are relative to: the file's own; None is the working directory."""
    run: Run = Run()
    """How long, and how closely."""
    host: Host
    """The machine."""
    vm: dict[str, VM] = attrs.field(factory=dict)
    """Virtual machines by name; a script may boot more."""
    event: tuple[Event, ...] = ()
    """What happens when, in any order; events of the same time happen in this order."""
    actor: tuple[Actor, ...] = ()
    """Actors of one's own."""
    measure: Measure = Measure()
    """What is measured."""
    sweep: Sweep | None = None
    """Runs with other values, for ``vmmsim sweep``."""

    def __attrs_post_init__(self) -> None:
        if not self.vm and self.run.script is None:
            raise BadInput("a scenario needs a VM, or a script that boots some", path="vm")
        for name in self.vm:
            check_vm_name(name)
