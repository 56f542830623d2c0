"""Workloads by description: a shipped program's model, a recorded trace, or a user's own code."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import attrs

from vmmsim import strict, user_code
from vmmsim.addresses import PAGE_BYTES, format_bytes
from vmmsim.config import Source
from vmmsim.errors import BadInput
from vmmsim.hints import hint, shown, unknown
from vmmsim.scenarios_folder import shipped_traces
from vmmsim.translation.costs import Number
from vmmsim.workloads.adapted import Adapted
from vmmsim.workloads.drawing import key_of
from vmmsim.workloads.graph500 import Graph500, Graph500Parameters
from vmmsim.workloads.gups import Gups, GupsParameters
from vmmsim.workloads.kernel_build import KernelBuild, KernelBuildParameters
from vmmsim.workloads.memcached import Memcached, MemcachedParameters
from vmmsim.workloads.recorded import TraceWorkload, held
from vmmsim.workloads.web import Web, WebParameters

if TYPE_CHECKING:
    from vmmsim.protocols import Workload
    from vmmsim.workloads.phased import Phased


class Description(Protocol):
    """What is to run, as a scenario's table says it; just one of ``name``, ``trace`` and ``use`` is given."""

    @property
    def name(self) -> str | None:
        """A shipped program."""
        ...

    @property
    def trace(self) -> str | None:
        """A trace file, or a shipped trace."""
        ...

    @property
    def use(self) -> str | None:
        """A user's class: "file.py:Class"."""
        ...

    @property
    def footprint_bytes(self) -> int | None:
        """Memory that the program uses; None leaves it to the program."""
        ...

    @property
    def repeat(self) -> bool:
        """Whether a trace begins again at its end."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """All other keys of the table."""
        ...


class _Program(NamedTuple):
    model: Callable[..., Phased]
    parameters: type


_MODELS: Final = {
    "graph500": _Program(Graph500, Graph500Parameters),
    "gups": _Program(Gups, GupsParameters),
    "kernel-build": _Program(KernelBuild, KernelBuildParameters),
    "memcached": _Program(Memcached, MemcachedParameters),
    "web": _Program(Web, WebParameters),
}
PROGRAMS: Final = tuple(_MODELS)
"""Names of the shipped programs."""
_COMMON: Final = ("name", "footprint", "load")
"""Keys that every program takes."""
SMALLEST: Final = 64
"""Pages that a program's footprint has at least."""


def build(description: Description, *, seed: int, vm: str, memory_bytes: int, folder: Path) -> Workload:
    """Return the workload that a scenario describes for the VM called ``vm``, which has ``memory_bytes``.

    Traces and files of code are looked for in ``folder``, the scenario's own. ``BadInput``, its path a key of the
    workload's table, for whatever cannot be used.
    """
    kinds = [key for key in ("name", "trace", "use") if getattr(description, key) is not None]
    if len(kinds) != 1:
        raise BadInput("give one of name, trace and use" + (f", not {' and '.join(kinds)}" if kinds else ""))
    if description.repeat and description.trace is None:
        raise BadInput("only a trace ends and can be repeated", path="repeat")
    if description.name is not None:
        return named(
            description.name,
            seed=seed,
            vm=vm,
            memory_bytes=memory_bytes,
            footprint_bytes=description.footprint_bytes,
            parameters=description.parameters,
        )
    if description.trace is not None:
        return _traced(description, description.trace, folder)
    return _of_user(description, str(description.use), seed, vm, memory_bytes, folder)


def numbers(program: str) -> dict[str, Number]:
    """Return the numbers of a program's model, ``data/workloads.toml``, by name."""
    return {
        name: Number(value=row["value"], source=Source(source=row["source"], sure=row["sure"]))
        for name, row in _table()[program].items()
    }


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files("vmmsim.data").joinpath("workloads.toml").read_text("utf-8"))


def named(
    name: str,
    *,
    seed: int,
    vm: str,
    memory_bytes: int,
    footprint_bytes: int | None = None,
    parameters: Mapping[str, Any] = MappingProxyType({}),
) -> Phased:
    """Return the model of a shipped program; ``BadInput`` as ``build``."""
    if name not in _MODELS:
        raise BadInput(unknown(name, PROGRAMS), path="name")
    model, kind = _MODELS[name]
    values = {key: number.value for key, number in numbers(name).items()}
    pages = _pages(name, footprint_bytes, memory_bytes, values)
    defaults = kind(**{field.name: values[field.name] for field in attrs.fields(kind)})
    return model(pages, _chosen(defaults, parameters), seed=seed, vm=vm, ideal_cycles=float(values["ideal_cycles"]))


def _pages(name: str, footprint_bytes: int | None, memory_bytes: int, values: Mapping[str, float]) -> int:
    """Return the pages of a program's footprint; ``BadInput`` if that is too large or too small."""
    if footprint_bytes is None:
        footprint_bytes = int(min(memory_bytes * values["share_of_memory"], values.get("footprint_bytes", 1 << 62)))
    if footprint_bytes > memory_bytes:
        raise BadInput(
            f"{format_bytes(footprint_bytes)} do not fit the VM's memory of {format_bytes(memory_bytes)}",
            path="footprint",
        )
    if footprint_bytes < SMALLEST * PAGE_BYTES:
        raise BadInput(
            f"{format_bytes(footprint_bytes)} is too small for {name}, which needs "
            f"{format_bytes(SMALLEST * PAGE_BYTES)}",
            path="footprint",
        )
    return footprint_bytes // PAGE_BYTES


def _chosen(defaults: Any, given: Mapping[str, Any]) -> Any:
    """Return ``defaults`` with what a table gives instead; ``BadInput`` as ``strict.structure`` raises it."""
    plain = strict.unstructure(defaults)
    for key in given:
        if key not in plain:
            raise BadInput(f"unknown key {shown(key)}{hint(key, (*plain, *_COMMON))}")
    return strict.structure(type(defaults), {**plain, **given})


def _traced(description: Description, trace: str, folder: Path) -> Workload:
    if description.footprint_bytes is not None:
        raise BadInput("a trace has the footprint that it was recorded with", path="footprint")
    for key in description.parameters:
        raise BadInput(f"unknown key {shown(key)}{hint(key, ('trace', 'repeat', 'load'))}")
    return TraceWorkload(held(trace_file(trace, folder)), repeat=description.repeat)


def trace_file(trace: str, folder: Path) -> Path:
    """Return the file of a trace: the one in ``folder``, or else a shipped one, with or without its ``.parquet``."""
    path = folder / trace
    if path.is_file():
        return path
    shipped = shipped_traces()
    name = trace.removesuffix(".parquet")
    if name in shipped:
        return shipped[name]
    raise BadInput(f"neither a file in {folder} nor a shipped trace; those are {', '.join(shipped)}", path="trace")


def _of_user(description: Description, use: str, seed: int, vm: str, memory_bytes: int, folder: Path) -> Workload:
    offered = {"seed": key_of(seed, "vm", vm, use), "memory_bytes": memory_bytes}
    given = dict(description.parameters)
    if description.footprint_bytes is not None:
        given["footprint_bytes"] = description.footprint_bytes
    try:
        return Adapted(user_code.make(use, folder, given, offered), use)
    except BadInput as error:
        first = error.problems[0]
        raise BadInput(first.message, path=first.path or "use") from error
