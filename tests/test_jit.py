"""The cache of compiled kernels is never stale, and compiled kernels do what the interpreted ones do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vmmsim
from vmmsim import jit

PACKAGE = Path(vmmsim.__file__).parent
KEY = "from vmmsim import jit; print(jit.cache_key())"


def answer(script: str, *, package: Path = PACKAGE, **variables: str) -> str:
    """Return what a script prints in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "PYTEST"))}
    environment = {**kept, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    # Not in our own folder, where Python would look for the package first.
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=package.parent if package != PACKAGE else "/",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.fixture(scope="module")
def plain() -> str:
    return answer(KEY, NUMBA_DISABLE_JIT="1")


def test_the_key_is_the_same_for_the_same_code(plain: str) -> None:
    assert answer(KEY, NUMBA_DISABLE_JIT="1") == plain
    assert len(plain) == 16
    assert int(plain, 16) >= 0


@pytest.mark.parametrize("name", ["NUMBA_BOUNDSCHECK", "NUMBA_OPT", "NUMBA_CPU_NAME"])
def test_the_key_changes_with_every_variable_of_numba(plain: str, name: str) -> None:
    value = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_OPT": "2", "NUMBA_CPU_NAME": "generic"}[name]
    assert answer(KEY, NUMBA_DISABLE_JIT="1", **{name: value}) != plain


def test_the_key_changes_with_sources_but_not_with_folders_that_hold_no_kernel(plain: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "vmmsim", ignore=shutil.ignore_patterns("__pycache__")))

    def key() -> str:
        return answer(KEY, package=copy, NUMBA_DISABLE_JIT="1")

    assert key() == plain, "the key does not depend on where the package lies"
    (copy / "report").mkdir(exist_ok=True)
    (copy / "report" / "new.py").write_text("x = 1\n")
    assert key() == plain
    for place in ("translation/recency.py", "addresses.py"):
        source = (copy / place).read_text()
        (copy / place).write_text(source + "\n# another comment\n")
        assert key() != plain, place
        (copy / place).write_text(source)
    assert key() == plain
    (copy / "translation" / "another.py").write_text("")
    assert key() != plain


def test_the_cache_folder_bears_the_key_and_is_where_it_was_told(tmp_path: Path) -> None:
    script = "from vmmsim import jit; print(jit.CACHE_FOLDER); print(jit.cache_key()); print(jit.is_warm())"
    folder, key, warm = answer(script, VMMSIM_CACHE=str(tmp_path)).split()
    assert Path(folder) == tmp_path / "kernels" / key
    assert warm == "False"
    assert Path(folder).is_dir()


def test_folders_that_nobody_used_for_a_month_are_dropped(tmp_path: Path) -> None:
    old, young = tmp_path / "kernels" / "old", tmp_path / "kernels" / "young"
    for each in (old, young):
        each.mkdir(parents=True)
    os.utime(old, (0, 0))
    answer("import vmmsim.jit", VMMSIM_CACHE=str(tmp_path))
    assert not old.exists()
    assert young.exists()


KERNEL = """
import numpy as np
from vmmsim import jit

{define}
print(jit.CACHE_FOLDER, add(np.arange(5)))
"""


def test_a_cache_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "kernels_of_a_test.py").write_text(
        "from vmmsim.jit import kernel\n\n\n@kernel\ndef add(array):\n    return array.sum()\n"
    )
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + KERNEL.format(
        define="from kernels_of_a_test import add"
    )
    for cache in (tmp_path / "file", Path("/proc/nothing")):
        assert answer(script, VMMSIM_CACHE=str(cache)) == "None 10"


def test_the_cache_is_warm_once_a_kernel_was_compiled(tmp_path: Path) -> None:
    (tmp_path / "kernels_of_a_test.py").write_text(
        "from vmmsim.jit import kernel\n\n\n@kernel\ndef add(array):\n    return array.sum()\n"
    )
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + KERNEL.format(
        define="from kernels_of_a_test import add"
    )
    answer(script, VMMSIM_CACHE=str(tmp_path / "cache"))
    assert answer("from vmmsim import jit; print(jit.is_warm())", VMMSIM_CACHE=str(tmp_path / "cache")) == "True"


RUN = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from tests.translation.worlds import PAGE, World, busy
from vmmsim.translation.chunk import pack

random = np.random.default_rng(5)
for mode in ("base", "vmm-direct", "dual-direct"):
    world = World(busy(ntlb_data=True), hierarchy=True).load(mode)
    world.map_guest(PAGE + 512, world.data + 512, 1)
    for page in range(1, 6):
        world.map_guest(PAGE + page, world.data + page)
    pages = PAGE + random.choice([0, 1, 2, 3, 4, 5, 512, 600], 300)
    done = 0
    chunk = pack(pages, random.random(300) < 0.3, line=random.integers(0, 64, 300), again=random.integers(0, 3, 300))
    while done < 300:
        outcome = world.engine.run(chunk[done:])
        done += outcome.done
        if outcome.gfn >= 0:
            world.back(outcome.gfn)
    world.engine.check()
    print(mode, sorted(world.engine.counters().items()), sorted(world.engine.contents().items()))
"""


@pytest.mark.skipif(jit.INTERPRETED, reason="compares with compiled kernels")
def test_kernels_interpreted_do_what_they_do_compiled() -> None:
    script = RUN.format(tests=str(Path(__file__).parents[1]))
    cache = os.environ.get("VMMSIM_CACHE")
    checked = {"NUMBA_BOUNDSCHECK": "1"} if jit.CHECKED else {}
    compiled = answer(script, **checked, **({"VMMSIM_CACHE": cache} if cache else {}))
    interpreted = answer(script, NUMBA_DISABLE_JIT="1")
    assert compiled == interpreted
    assert compiled.count("('walks', 0)") <= 1, "only Dual Direct may go without a walk"
