"""Programs that cannot be built, found before a run begins rather than when their VM boots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmmsim.errors import BadInput, Problem
from vmmsim.paths import join
from vmmsim.workloads.programs import build

if TYPE_CHECKING:
    from vmmsim.scenario import Scenario


def check_programs(scenario: Scenario, file: str = "") -> None:
    """Raise ``BadInput`` with all that is wrong with the named programs of a scenario: their keys and footprints.

    Traces and users' code are left alone: reading a trace takes long, and code may do anything. Of VMs that are
    alike, the first speaks for all. ``file`` is what messages call the scenario.
    """
    problems: list[Problem] = []
    tried = []
    for name, vm in scenario.vm.items():
        if vm.workload is None or vm.workload.name is None or vm in tried:
            continue
        tried.append(vm)
        try:
            build(vm.workload, seed=0, vm=name, memory_bytes=vm.memory_bytes, folder=scenario.folder or Path())
        except BadInput as bad:
            place = f"{join('vm', name)}.workload"
            problems += [
                Problem(file, f"{place}.{problem.path}".rstrip("."), problem.message) for problem in bad.problems
            ]
    if problems:
        raise BadInput.of(problems)
