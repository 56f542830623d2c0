"""The poster's table of trade-offs, measured: a paired experiment on a running VM.

The same life is lived once for each mode. In Base every service is tried on a stratified random sample of the VM's
pages, each attempt on its own copy of the state; then in each mode on the same pages. An attempt is done, or says why
not: only a segment's pin is the mode's doing. What is done elsewhere than in Base, or not done for another reason, is
an error of the model, and is told as such.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from vmmsim.config import MODES
from vmmsim.errors import BadInput, Refused
from vmmsim.hints import unknown
from vmmsim.randomness import stream
from vmmsim.scenario import Scenario, Workload
from vmmsim.studies import tradeoff_walks
from vmmsim.studies.snapshot import Snapshot
from vmmsim.studies.tradeoff_changes import Changes, changes
from vmmsim.studies.tradeoff_life import STUDIED, Life, live, studied_vm
from vmmsim.studies.tradeoff_pages import Sample, Stratum, draw
from vmmsim.studies.tradeoff_services import DONE, SERVICES, Attempt, attempt, ready
from vmmsim.studies.tradeoff_walks import Walks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PAGES: Final = 64
"""Pages of the sample, about."""
ACCESSES: Final = 2000
"""Accesses whose walks are looked at."""
BIG_MEMORY: Final = "big-memory"
ANY: Final = "any"
_SMALL_BYTES: Final = 512 << 20
_SMALL_HOST_BYTES: Final = 3 << 30
_SMALL_PROGRAM_BYTES: Final = 64 << 20

Verdict = Literal["unrestricted", "limited", "none"]


@attrs.frozen(kw_only=True)
class Cell:
    """One service in one mode."""

    mode: str
    service: str
    attempts: tuple[Attempt, ...]
    """On the pages where it succeeds in Base."""
    strata: tuple[Stratum, ...]
    weights: tuple[float, ...]
    """Share of E, the VM's memory that the service can have in Base, that each attempt stands for."""

    @property
    def verdict(self) -> Verdict | None:
        """What the mode lets it do; None if it can be done nowhere in Base."""
        if not self.attempts:
            return None
        done = sum(one.done for one in self.attempts)
        return "unrestricted" if done == len(self.attempts) else "limited" if done else "none"

    @property
    def share(self) -> float | None:
        """Share of E that it can have in this mode."""
        return self._share(lambda one: one.done)

    @property
    def reusable(self) -> float | None:
        """Share of E whose frames the host can use for others afterwards."""
        return self._share(lambda one: one.reusable)

    def _share(self, counts: Callable[[Attempt], bool]) -> float | None:
        if not self.attempts:
            return None
        return sum(weight for one, weight in zip(self.attempts, self.weights, strict=True) if counts(one))

    @property
    def refusals(self) -> dict[str, int]:
        """Attempts that the mode refused, by reason."""
        return dict(sorted(Counter(one.outcome for one in self.attempts if one.refused).items()))

    @property
    def errors(self) -> tuple[str, ...]:
        """What contradicts the model, a line each: outcomes that are no refusals, and refusals out of place."""
        wrong = [
            f"{self.mode}.{self.service}: {one.outcome} on a page of {self.strata[one.page.stratum].name}"
            for one in self.attempts
            if not one.done and not one.refused
        ]
        return (*dict.fromkeys(wrong), *self._out_of_place())

    def _out_of_place(self) -> list[str]:
        """Inside a segment that refuses anything, nothing may be done; outside of it, nothing may be refused."""
        found = []
        for reason in self.refusals:
            kind = {"PINNED_GUEST": "guest segment", "PINNED_VMM": "VMM segment"}[reason]
            where = f"{self.mode}: {kind}"
            for one in self.attempts:
                stratum = self.strata[one.page.stratum]
                if one.done and where in stratum.covered:
                    found.append(f"{self.mode}.{self.service}: DONE under the {kind} that refuses others")
                if one.outcome == reason and where not in stratum.covered:
                    found.append(f"{self.mode}.{self.service}: {reason} outside the {kind}")
        return list(dict.fromkeys(found))


@attrs.frozen(kw_only=True)
class Column:
    """One mode."""

    mode: str
    walks: Walks
    huge: Walks
    """The same with pages of 2 MiB in guest and host, on a small VM."""
    without: Walks
    """The same with a program that has no primary region, on a small VM."""
    guest: Changes
    vmm: Changes
    cells: dict[str, Cell]

    @property
    def category(self) -> str:
        """Programs that the mode is for: any, if what it covers does not hang on a primary region."""
        return ANY if self.without.share > self.walks.share / 2 else BIG_MEMORY


@attrs.frozen(kw_only=True)
class Tradeoffs:
    """The table as measured."""

    scenario: str
    vm: str
    seed: int
    sample: Sample
    columns: dict[str, Column]

    @property
    def errors(self) -> tuple[str, ...]:
        """What contradicts the model, a line each; empty if all is well."""
        return tuple(line for column in self.columns.values() for cell in column.cells.values() for line in cell.errors)

    def cell(self, name: str) -> Cell:
        """Return a cell by its name, e.g. "dual-direct.page_sharing"; ``BadInput`` if there is none."""
        check_cell(name)
        mode, _, service = name.partition(".")
        return self.columns[mode].cells[service]

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON document's body."""
        from vmmsim.report.tradeoffs_table import as_dict

        return as_dict(self)

    def __str__(self) -> str:
        """Return the table as text."""
        from vmmsim.report.tradeoffs_table import table

        return table(self)


def check_cell(name: str) -> None:
    """Raise ``BadInput`` unless ``name`` is MODE.SERVICE."""
    cells = [f"{mode}.{service}" for mode in STUDIED for service in SERVICES]
    if name not in cells:
        raise BadInput(unknown(name, cells) if "." in name else f'"{name}" is no cell; write e.g. "{cells[5]}"')


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
    name = studied_vm(described)
    say = progress or (lambda words: None)
    lives: dict[str, Life] = {}
    for mode in STUDIED:
        say(f"living in {mode}")
        lives[mode] = live(described, name, mode)
    walks = {mode: tradeoff_walks.measure(life, MODES[mode], ACCESSES) for mode, life in lives.items()}
    used = {mode: changes(life) for mode, life in lives.items()}
    sample = draw(lives, pages, stream(described.run.seed, "tradeoffs.sample"))
    tried: dict[str, dict[str, list[Attempt]]] = {}
    for mode in STUDIED:
        say(f"trying services in {mode}")
        tried[mode] = _try_all(lives.pop(mode), sample)
    cells = _cells(tried, sample)
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
        scenario=described.name, vm=name, seed=described.run.seed, sample=sample, columns=columns
    )


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


def _try_all(life: Life, sample: Sample) -> dict[str, list[Attempt]]:
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


def _cells(tried: Mapping[str, Mapping[str, list[Attempt]]], sample: Sample) -> dict[str, dict[str, Cell]]:
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
    thp = "always" if huge else "never"
    program = Workload(name="gups" if huge else "web", footprint_bytes=_SMALL_PROGRAM_BYTES)
    name, vm = next((name, vm) for name, vm in scenario.vm.items() if vm.workload is not None)
    vm = attrs.evolve(vm, memory_bytes=_SMALL_BYTES, vcpus=1, boot_ns=0, age_ns=0, io_gap="keep", thp=thp, workload=program)
    host = attrs.evolve(
        scenario.host, memory_bytes=_SMALL_HOST_BYTES, kernelcore_bytes=1 << 30, age_ns=0, thp=thp, faults=None
    )
    run = attrs.evolve(scenario.run, scale=1, script=None)
    small = attrs.evolve(scenario, run=run, host=host, vm={name: vm}, event=(), actor=())
    life = live(small, name, mode, services=False, must=False)
    return tradeoff_walks.measure(life, MODES[mode], ACCESSES)


__all__ = ["Refused", "Tradeoffs", "check_cell", "reference", "tradeoffs"]
