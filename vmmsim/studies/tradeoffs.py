"""The poster's table of trade-offs, measured: a paired experiment on a running VM.

The same life is lived once for each mode. In Base every service is tried on a stratified random sample of the VM's
pages, each attempt on its own copy of the state; then in each mode on the same pages. An attempt is done, or says why
not: only a segment's pin is the mode's doing. What is done elsewhere than in Base, or not done for another reason, is
an error of the model, and is told as such.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from vmmsim.config import MODES
from vmmsim.errors import BadInput
from vmmsim.randomness import stream
from vmmsim.scenario import Scenario, Workload
from vmmsim.studies import tradeoff_walks
from vmmsim.studies.snapshot import Snapshot
from vmmsim.studies.tradeoff_changes import changes
from vmmsim.studies.tradeoff_life import STUDIED, Life, live, studied_vm
from vmmsim.studies.tradeoff_pages import Sample, draw
from vmmsim.studies.tradeoff_result import Cell, Column, Tradeoffs
from vmmsim.studies.tradeoff_services import DONE, SERVICES, Attempt, attempt, ready

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmmsim.scenario.values import Thp
    from vmmsim.studies.tradeoff_walks import Walks

PAGES: Final = 64
"""Pages of the sample, about."""
ACCESSES: Final = 2000
"""Accesses whose walks are looked at."""
_SMALL_BYTES: Final = 512 << 20
_SMALL_HOST_BYTES: Final = 3 << 30
_SMALL_PROGRAM_BYTES: Final = 64 << 20


def tradeoffs(
    scenario: Scenario | str | Path | None = None,
    *,
    pages: int = PAGES,
    seed: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Tradeoffs:
    """Measure what each mode permits, on the first VM of ``scenario`` that runs a program.

    scenario  a ``Scenario``, a file's path or a shipped scenario's name; None is the reference VM of 8 GiB
    pages     about how many pages each service is tried on
    seed      of the lives and of the sample; None is the scenario's
    progress  called with what is being done

    ``BadInput`` for what cannot be lived; ``Refused`` if the VM cannot have one of the modes.
    """
    if pages < 1:
        raise BadInput(f"{pages} pages are too few; at least 1", path="pages")
    described = _described(scenario, seed)
    say = progress or (lambda words: None)
    lives = live_all(described, say)
    walks = {mode: tradeoff_walks.measure(life, MODES[mode], ACCESSES) for mode, life in lives.items()}
    used = {mode: changes(life) for mode, life in lives.items()}
    sample = draw(lives, pages, stream(described.run.seed, "tradeoffs.sample"))
    tried: dict[str, dict[str, list[Attempt]]] = {}
    for mode in STUDIED:
        say(f"trying services in {mode}")
        tried[mode] = try_all(lives.pop(mode), sample)
    cells = cells_of(tried, sample)
    columns = {}
    for mode in STUDIED:
        say(f"small VMs in {mode}")
        columns[mode] = Column(
            mode=mode,
            walks=walks[mode],
            huge=_small(described, mode, huge=True),
            without=_small(described, mode, huge=False),
            guest=used[mode]["guest"],
            vmm=used[mode]["vmm"],
            cells=cells[mode],
        )
    return Tradeoffs(
        scenario=described.name, vm=studied_vm(described), seed=described.run.seed, sample=sample, columns=columns
    )


def live_all(scenario: Scenario, say: Callable[[str], None]) -> dict[str, Life]:
    """Live once in each mode; ``Refused`` if the VM cannot have one of them."""
    name, lives = studied_vm(scenario), {}
    for mode in STUDIED:
        say(f"living in {mode}")
        lives[mode] = live(scenario, name, mode)
    return lives


def _described(scenario: Scenario | str | Path | None, seed: int | None) -> Scenario:
    if not isinstance(scenario, Scenario):
        from vmmsim.scenario_file import load_scenario

        scenario = load_scenario(str(scenario) if scenario is not None else reference())
    if seed is not None:
        scenario = attrs.evolve(scenario, run=attrs.evolve(scenario.run, seed=seed))
    return scenario


def reference() -> Path:
    """Return the file of the reference VM's scenario."""
    import vmmsim.data

    return Path(str(vmmsim.data.__file__)).parent / "tradeoffs.toml"


def try_all(life: Life, sample: Sample) -> dict[str, list[Attempt]]:
    """Try every service on every page of the sample, each attempt from the same state."""
    core = ready(life, sample.pages)
    kept = Snapshot(life)
    found: dict[str, list[Attempt]] = {}
    for service in SERVICES:
        found[service] = []
        for page in sample.pages:
            one = attempt(life, service, page, core)
            found[service].append(one)
            if not one.refused or service == "dirty_logging":  # who is refused has changed nothing
                kept.restore()
    return found


def cells_of(tried: Mapping[str, Mapping[str, list[Attempt]]], sample: Sample) -> dict[str, dict[str, Cell]]:
    """Return the cells: the attempts on those pages where each service succeeds in Base, weighted."""
    base = tried["base"]
    of_stratum = Counter(page.stratum for page in sample.pages)
    cells: dict[str, dict[str, Cell]] = {mode: {} for mode in tried}
    for service in SERVICES:
        within = [number for number, one in enumerate(base[service]) if one.outcome == DONE]
        weights = [
            sample.strata[stratum].pages / of_stratum[stratum]
            for stratum in (sample.pages[number].stratum for number in within)
        ]
        for mode in tried:
            cells[mode][service] = Cell(
                mode=mode,
                service=service,
                attempts=tuple(tried[mode][service][number] for number in within),
                strata=sample.strata,
                weights=tuple(weight / sum(weights) for weight in weights),
            )
    return cells


def _small(scenario: Scenario, mode: str, *, huge: bool) -> Walks:
    """Measure walks on a small VM of the same machine: with huge pages, or of a program without a primary region."""
    thp: Thp = "always" if huge else "never"
    program = Workload(name="gups" if huge else "web", footprint_bytes=_SMALL_PROGRAM_BYTES)
    name, vm = next((name, vm) for name, vm in scenario.vm.items() if vm.workload is not None)
    vm = attrs.evolve(
        vm, memory_bytes=_SMALL_BYTES, vcpus=1, boot_ns=0, age_ns=0, io_gap="keep", thp=thp, workload=program
    )
    host = attrs.evolve(
        scenario.host, memory_bytes=_SMALL_HOST_BYTES, kernelcore_bytes=1 << 30, age_ns=0, thp=thp, faults=None
    )
    run = attrs.evolve(scenario.run, scale=1, script=None)
    small = attrs.evolve(scenario, run=run, host=host, vm={name: vm}, event=(), actor=())
    life = live(small, name, mode, services=False, must=False)
    return tradeoff_walks.measure(life, MODES[mode], ACCESSES)
