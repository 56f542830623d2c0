"""Code of users: found by the name that a scenario gives it, made with the keys that its table holds."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from vmmsim.errors import BadInput
from vmmsim.hints import hint, shown

GROUP: Final = "vmmsim"
"""Group of the entry points by which installed packages offer their code."""


def load(words: str, folder: Path) -> Any:
    """Return what ``words`` name: "file.py:Name" beside ``folder``, "package.module:Name", or an entry point.

    ``BadInput`` if there is no such file, module or name, or if the code fails as it is read.
    """
    place, _, name = words.rpartition(":")
    if not place:
        return _entry_point(words)
    module = _file(folder / place) if place.endswith(".py") else _module(place)
    try:
        return getattr(module, name)
    except AttributeError:
        names = [known for known in vars(module) if not known.startswith("_")]
        raise BadInput(f"{place} has no {shown(name)}{hint(name, names)}") from None


def make(words: str, folder: Path, given: Mapping[str, Any], offered: Mapping[str, Any] | None = None) -> Any:
    """Return an instance of the class that ``words`` name, made with the keywords ``given``.

    Of ``offered`` it gets what it takes by name and was not given. ``BadInput`` as ``load``, for a keyword that is
    unknown or missing, and for what its constructor raises.
    """
    cls = load(words, folder)
    if not isinstance(cls, type):
        raise BadInput(f"{words} is no class, but {type(cls).__name__}")
    try:
        parameters = inspect.signature(cls).parameters
    except ValueError:
        raise BadInput(f"{words} does not say what it takes; use a class written in Python") from None
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = [name for name, parameter in parameters.items() if parameter.kind in (1, 3)]
    for key in given:
        if key not in named and not takes_any:
            raise BadInput(f"{words} takes no {shown(key)}{hint(key, named)}")
    arguments = {**{key: value for key, value in (offered or {}).items() if key in named}, **given}
    for name in named:
        if parameters[name].default is inspect.Parameter.empty and name not in arguments:
            raise BadInput(f"{words} needs {shown(name)}")
    try:
        return cls(**arguments)
    except Exception as error:
        raise BadInput(f"{words} cannot be made: {_said(error)}") from error


def _entry_point(name: str) -> Any:
    found = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    if name not in found:
        raise BadInput(f'{shown(name)} names no code; write e.g. "file.py:Name"{hint(name, found)}')
    try:
        return found[name].load()
    except Exception as error:
        raise BadInput(f"{name} cannot be loaded: {_said(error)}") from error


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise BadInput(f"there is no module {name}") from None
        raise BadInput(f"{name} cannot be imported: {_said(error)}") from error
    except Exception as error:
        raise BadInput(f"{name} cannot be imported: {_said(error)}") from error


def _file(path: Path) -> ModuleType:
    """Return the module in a file, read anew if the file has changed since it was last read."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {os.strerror(error.errno or 0)}") from None
    name = f"vmmsim_user_{sha256(os.fsencode(path.resolve()) + source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a file that ends in .py has a loader"
    assert spec.loader is not None, "a file that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where classes look for the module that they are defined in
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise BadInput(f"{path} cannot be read: {_said(error)}") from error
    return module


def _said(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
