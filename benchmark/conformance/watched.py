"""Observations that tell when an attack reaches for anything that is not its own to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn, TypeVar, overload

from attacks.base import Need
from benchmark.conformance.subject import ConformanceFailure
from federation.network import Network
from federation.threat import Observation, Victim

PARTS: dict[str, Need] = {
    "transcript": Need.TRANSCRIPT,
    "held": Need.HELD,
    "scheme": Need.SCHEME,
    "auxiliary": Need.AUXILIARY,
    "own_updates": Need.OWN_UPDATE,
}
"""The parts of an observation that an attack has to declare."""

_OF_NETWORKS = frozenset(
    name for name in (*vars(Network), "build", "image_shape", "class_count") if not name.startswith("_")
)

Thing = TypeVar("Thing")


class Trespasses:
    """What was reached for, whether or not the attack caught the error that it got."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def report(self, what: str) -> NoReturn:
        """Note it and raise ConformanceFailure."""
        self._found.append(what)
        raise ConformanceFailure(f"it reads {what}")

    def check(self) -> None:
        """Raise ConformanceFailure for the first, if there was any."""
        if self._found:
            raise ConformanceFailure(f"it reads {self._found[0]}")


class Forbidden:
    """Stands for a part of an observation that an attack did not declare that it needs; it may be passed on unread."""

    def __init__(self, part: str, trespasses: Trespasses) -> None:
        object.__setattr__(self, "_about", (part, trespasses))

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":  # what `isinstance` asks of anything
            return object.__getattribute__(self, name)
        return Forbidden._refuse(self)

    def _refuse(self, *_: object) -> NoReturn:
        about: tuple[str, Trespasses] = object.__getattribute__(self, "_about")
        part, trespasses = about
        trespasses.report(f"the observation's {part}, which is not among its needs")

    __iter__ = __len__ = __getitem__ = __contains__ = __bool__ = __eq__ = __hash__ = _refuse


class WatchedHistory(Sequence[Observation]):
    """A history that can be counted and looked at round by round, and nothing else.

    Args:
        observations: what it holds.
        needs: of the attack: parts of observations that are not among them may not be read.
        trespasses: told of everything else that is asked of the history, its observations, their views, facts and networks.
    """

    def __init__(self, observations: Sequence[Observation], needs: frozenset[Need], trespasses: Trespasses) -> None:
        undeclared = {part: Forbidden(part, trespasses) for part, need in PARTS.items() if need not in needs}
        networks = {id(item.network): item.network for item in observations}
        watched_networks = {key: watched(network, "network", trespasses) for key, network in networks.items()}

        def seen(item: Observation) -> Observation:
            parts = {field.name: getattr(item, field.name) for field in fields(item)} | undeclared
            for name in ("view", "facts"):
                parts[name] = watched(parts[name], name, trespasses)
            if "auxiliary" not in undeclared and parts["auxiliary"] is not None:
                parts["auxiliary"] = watched(parts["auxiliary"], "auxiliary", trespasses)
            return watched(
                Observation(**parts | {"network": watched_networks[id(item.network)]}), "observation", trespasses
            )

        object.__setattr__(self, "_rounds", [seen(item) for item in observations])
        object.__setattr__(self, "_trespasses", trespasses)

    @overload
    def __getitem__(self, index: int) -> Observation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Observation]: ...
    def __getitem__(self, index: int | slice) -> Observation | list[Observation]:
        found: Observation | list[Observation] = object.__getattribute__(self, "_rounds")[index]
        return found

    def __len__(self) -> int:
        return len(object.__getattribute__(self, "_rounds"))

    def __iter__(self) -> Iterator[Observation]:
        return iter(object.__getattribute__(self, "_rounds"))

    def __getattribute__(self, name: str) -> Any:
        if name in ("index", "count") or _is_special(name):
            return object.__getattribute__(self, name)
        object.__getattribute__(self, "_trespasses").report(f"{name!r} of the history")
        return None


def watched_victims(victims: Sequence[Victim], trespasses: Trespasses) -> list[Victim]:
    """Victims of whom nothing but their own fields can be read."""
    return [watched(victim, "victim", trespasses) for victim in victims]


def watched(thing: Thing, what: str, trespasses: Trespasses) -> Thing:
    """An equal of `thing`, of a class derived from its own, of which nothing but its public fields can be read.

    Args:
        thing: a dataclass or a network.
        what: what it is, in words.
        trespasses: told of the attributes that are asked for and that it has not.
    """
    kind: Any = type(thing)
    if is_dataclass(kind):
        allowed = frozenset(field.name for field in fields(kind))
        values = {name: getattr(thing, name) for name in allowed}
    else:
        assert isinstance(thing, Network), "an observation refers to dataclasses and a network"
        allowed, values = _OF_NETWORKS, {name: getattr(thing, name) for name in ("build", "image_shape", "class_count")}

    class Watched(kind):
        def __getattribute__(self, name: str) -> Any:
            if name not in allowed and not _is_special(name):
                trespasses.report(f"{name!r} of the {what}, which nobody gave it")
            return super().__getattribute__(name)

    Watched.__name__ = Watched.__qualname__ = kind.__name__
    built: Thing = Watched(**values)
    return built


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")
