"""What users test their own code with: a check for each contract of ``vmmsim.protocols``, and of a whole host.

``check_workload`` is for a workload, ``check_mode_policy`` for a mode policy, ``check_balloon_policy`` for a balloon
policy; ``toy_scenario`` describes a host small enough to recount after every event, and ``check`` recounts it;
``SystemMachine`` lives a random life on one, of the verbs it is given.
"""

from vmmsim.testing.balloon_contract import check_balloon_policy
from vmmsim.testing.lives import MIB, SystemMachine, check, toy_scenario, toy_vm
from vmmsim.testing.policy_contract import check_mode_policy
from vmmsim.testing.workload_contract import check_workload

__all__ = [
    "MIB",
    "SystemMachine",
    "check",
    "check_balloon_policy",
    "check_mode_policy",
    "check_workload",
    "toy_scenario",
    "toy_vm",
]
