"""Options from outside (experiments, the command line), checked against the type hints of what they are for."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pydantic

from federation.errors import UsageError

Built = TypeVar("Built")


def build_with_options(entry: Callable[..., Built], options: Mapping[str, object], where: str) -> Built:
    """Call `entry`, a dataclass or a function, with `options` checked against its own hints.

    Args:
        entry: what to build; every parameter has a type hint.
        options: values by parameter name.
        where: what is being built, for the error's text.

    Raises:
        UsageError: for an option that does not exist, is missing, or has a value that does not fit.
    """
    hints = typing.get_type_hints(entry)
    parameters = inspect.signature(entry).parameters
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in parameters.items()
    }
    checker = pydantic.create_model("Options", __config__=pydantic.ConfigDict(extra="forbid"), **fields)
    try:
        checked = checker.model_validate(dict(options))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UsageError(f"{where}: no option {option!r}; there are: {', '.join(fields) or 'none'}") from error
        raise UsageError(f"{where}: option {option!r}: {first['msg']}") from error
    return entry(**{name: getattr(checked, name) for name in fields})
