"""`run.state`: attributes that are part of the run."""

from __future__ import annotations

from typing import Any

from autoresume.state.generator import GENERATOR_TYPES, GeneratorState
from autoresume.state.sharded import cut_like


class Namespace:
    """`run.state`: attributes that are part of the run's state."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"run.state has no {name!r}; set it before it is read, or use run.state.get({name!r})")

    def get(self, name: str, default: Any = None) -> Any:
        return self.__dict__.get(name, default)

    def setdefault(self, name: str, default: Any) -> Any:
        return self.__dict__.setdefault(name, default)

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__

    def __repr__(self) -> str:
        return f"State({', '.join(f'{key}={value!r}' for key, value in self.__dict__.items())})"

    def state_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            there = self.__dict__.get(name)
            if isinstance(there, GENERATOR_TYPES):
                GeneratorState(there).load_state_dict(GeneratorState(value).state_dict())
            else:
                self.__dict__[name] = cut_like(value, there)
