"""The defenses by name, and how an experiment's words become one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from defenses.base import Defense
from defenses.stages import Codec, Stage
from federation.errors import UsageError
from federation.options import build_with_options
from federation.registry import Registry

DefenseEntry: TypeAlias = Callable[..., Stage | Defense]
"""A stage class (a frozen dataclass whose fields are its options), or a function that returns a whole defense."""

DEFENSES: Registry[DefenseEntry] = Registry("defense", "keyhole.defenses")

StageSpec: TypeAlias = str | Mapping[str, Mapping[str, object]]
"""A stage in an experiment: its name, or `{name: {option: value}}`."""


def build_defense(name: str, stages: Sequence[StageSpec] | None = None) -> Defense:
    """The defense called `name`: as registered, or, where `stages` are given, that stack under this name.

    Raises:
        UsageError: for unknown names (with near matches), options that do not exist or fit, stacks that cannot be.
    """
    # the stack is imported late: its default codec registers itself here
    from defenses.plain import Plain
    from defenses.stack import Stack

    built = [_build(spec, where=f"defense {name!r}") for spec in (stages or [name])]
    if len(built) == 1 and isinstance(built[0], Defense):
        return _named(built[0], name)
    parts = [part for part in built if isinstance(part, Stage)]
    if len(parts) != len(built):
        raise UsageError(f"defense {name!r}: a whole defense cannot be a stage of another")
    return Stack(name, parts if isinstance(parts[-1], Codec) else [*parts, Plain()])


def _named(defense: Defense, name: str) -> Defense:
    """The same defense under another name in tables, such as one with options of its own."""
    renamed = copy.copy(defense)
    object.__setattr__(renamed, "name", name)  # a defense may be a frozen dataclass
    return renamed


def _build(spec: StageSpec, where: str) -> Stage | Defense:
    if isinstance(spec, str):
        entry_name, options = spec, {}
    elif len(spec) == 1:
        ((entry_name, given),) = spec.items()
        options = dict(given or {})
    else:
        raise UsageError(f"{where}: a stage is a name or one {{name: options}} pair, not {dict(spec)!r}")
    return build_with_options(DEFENSES.get(entry_name), options, f"{where}: stage {entry_name!r}")
