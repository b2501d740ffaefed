"""Checks of what people write into experiments: every error is one line that names the place."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import pydantic

from federation.errors import UsageError

Values = TypeVar("Values", bound=Sequence[Any])


class StrictModel(pydantic.BaseModel):
    """Every part of an experiment: frozen, without keys that nobody reads, and with finite numbers."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def as_value_error(check: Callable[..., Any], *arguments: Any) -> Any:
    """Run a check of the house inside a pydantic validator, which understands ValueError."""
    try:
        return check(*arguments)
    except UsageError as error:
        raise ValueError(str(error)) from error


def distinct(values: Values, message: str) -> Values:
    """The values; or a ValueError with the first that comes twice in place of the braces in `message`."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(message.format(value))
    return values


def check_keywords(function: Callable[..., Any], options: Mapping[str, Any], given: Collection[str]) -> None:
    """Check options for the keyword-only parameters of a function against its type hints.

    Args:
        function: what the options are for.
        options: values by name.
        given: parameters that do not come from options.

    Raises:
        ValueError: for an option that the function does not take, lacks or cannot read.
    """
    hints = typing.get_type_hints(function)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in given
    }
    as_value_error(validated_part, pydantic.create_model("Options", __base__=StrictModel, **fields), options)


def validated_part(model: type[Any], content: Any, where: str = "") -> Any:
    """`content` as `model`; raises UsageError with one line that names the place."""
    try:
        return model.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            known = f"; there are: {', '.join(model.model_fields) or 'none'}" if len(first["loc"]) == 1 else ""
            message = f"unknown key{known}"
        if first["type"] == "model_type":
            message = "must be keys with values"
        raise UsageError(": ".join(part for part in (where, place, message) if part)) from error
