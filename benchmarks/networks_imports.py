"""Importing a network's module from a checkout of its authors' code, without the packages that it only trains with.

Nothing of such a checkout is run but the module of the network and what that imports. Its packages are entered by path,
so that their `__init__` (which imports data sets, metrics, compiled extensions) is not run; packages that are not
installed, and the training half of basicsr, are replaced by empty ones.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

EMPTY = ("basicsr.utils", "basicsr.ops", "cv2", "easydict", "fairscale", "mmcv", "omegaconf")
"""Packages that are never entered: what a network takes from them is a registry, a logger, or a training option."""

RENAMED = ("timm.models.efficientnet_builder",)
"""Modules that moved since; the networks here take from them what they do not use."""


class AnyAttribute(type):
    """The class of `Anything`."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args and callable(args[0]) else Anything


class Anything(metaclass=AnyAttribute):
    """Stands for a registry, a decorator, a function or a base class of an empty package: a call gives back the class
    that it was given, or `Anything`."""


class EmptyModule(ModuleType):
    """A module that has every name."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


class EmptyPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module for every name below `EMPTY` and `RENAMED`."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if any(name == known or name.startswith(f"{known}.") for known in (*EMPTY, *RENAMED)):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def module_of(official: Path, repository: str, name: str) -> ModuleType:
    """The module of that dotted name in a checkout; parts of basicsr that it has not come from the checkout BasicSR.

    Call it once in a process: what is imported stays imported under the names that the authors gave.
    """
    here = official / repository
    if not any(isinstance(finder, EmptyPackages) for finder in sys.meta_path):
        sys.meta_path.insert(0, EmptyPackages())
    sys.path.insert(0, str(here))
    for package in ("basicsr", "basicsr.archs", *parents(name)):
        folders = [here.joinpath(*package.split(".")), official.joinpath("BasicSR", *package.split("."))]
        module = sys.modules[package] = ModuleType(package)
        module.__path__ = [str(folder) for folder in folders if folder.is_dir()]
    return importlib.import_module(name)


def parents(name: str) -> list[str]:
    """The packages above a module, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]
