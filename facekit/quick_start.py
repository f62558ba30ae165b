"""Imports torchvision without torch's compiler: every command starts 1.5 times sooner.

torchvision.ops asks one question of torch._dynamo, the compiler that we never use, and to import that takes longer than
to import torch. Here the compiler is imported when the question is asked. Import this module before torchvision.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo.utils"
QUESTION = "is_compile_supported"


class _LaterModule(ModuleType):
    """In place of a module: it answers the question by importing that, and gives way to it when asked for more."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == QUESTION:
            return lambda *arguments: getattr(self._really(), QUESTION)(*arguments)
        return getattr(self._really(), name)

    def _really(self) -> ModuleType:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)


if COMPILER not in sys.modules and "torchvision" not in sys.modules:
    later = sys.modules[COMPILER] = _LaterModule(COMPILER)
    try:
        import torchvision  # noqa: F401
    finally:
        if sys.modules.get(COMPILER) is later:
            del sys.modules[COMPILER]
