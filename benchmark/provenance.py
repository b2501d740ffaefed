"""What a run was computed with: versions, revision, machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from federation.device import CPU, gpus_of

_RECORDED = (
    "keyhole",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-image",
    "lpips",
    "stlpips-pytorch",
    "phe",
    "gmpy2",
)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide numbers."""
    versions = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def source_revision() -> tuple[str, bool]:
    """The git commit of the source and whether it was changed; ("unknown", False) outside a checkout of its own."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # fails where an installed copy lies in another checkout
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "unknown", False


def hardware(device: str = CPU) -> dict[str, Any]:
    """The processor's name, its cores, the memory in bytes, and where it is not the processor the device and its GPUs."""
    found: dict[str, Any] = {"cpu": _processor(), "cores": os.cpu_count() or 1, "memory": _memory()}
    if device == CPU:
        return found
    names = [torch.cuda.get_device_name(index) for index in gpus_of(device)]
    return found | {"device": device, "gpu": ", ".join(names)}


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
