"""Experiments as YAML: those that come with Keyhole, and files of one's own."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import yaml

from benchmark.experiment import Experiment, validated
from federation.errors import UsageError


def embedded_experiments() -> dict[str, str]:
    """The experiments that come with Keyhole: name to YAML text."""
    folder = importlib.resources.files("benchmark") / "experiments"
    return {
        entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8")
        for entry in sorted(folder.iterdir(), key=lambda item: item.name)
        if entry.name.endswith(".yaml")
    }


def load_experiment(reference: str) -> Experiment:
    """The experiment that `reference` names: an embedded one, or the path of a YAML file.

    Raises:
        UsageError: for an unknown name, an unreadable file, YAML that does not parse, or a key, type or combination
            that cannot be; one line that names the place.
    """
    embedded = embedded_experiments()
    path = Path(reference)
    if reference in embedded:
        text = embedded[reference]
    elif path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: not a readable experiment ({error})") from error
    else:
        raise UsageError(
            f"no experiment is called {reference!r}; there are {', '.join(embedded)}, or give the path of a .yaml file"
        )
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{reference}: not YAML: {' '.join(str(error).split())}") from error
    return validated(content, reference)
