"""Settings of every test: hypothesis without deadlines, and kernels compiled once, before the workers start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from vmmsim.jit import INTERPRETED

LIVES = Path(__file__).parent / "actors"

settings.register_profile(
    "vmmsim",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    report_multiple_bugs=False,
)
settings.load_profile("vmmsim")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile in the process that starts the workers: otherwise each of them would."""
    if not hasattr(session.config, "workerinput"):
        from vmmsim.jit import is_warm

        if not is_warm():
            from vmmsim.studies.warming import warm

            warm()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave lives to compiled kernels: interpreted, a small host takes minutes; kernels have tests of their own."""
    if INTERPRETED:
        for item in items:
            if LIVES in item.path.parents or item.get_closest_marker("life"):
                item.add_marker(pytest.mark.skip(reason="a life of a host: compiled kernels only"))
