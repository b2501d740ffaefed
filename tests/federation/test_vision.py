"""The door to torchvision opens with and without torchvision's own library."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from federation import vision


def test_what_keyhole_uses_of_torchvision_is_there():
    assert vision.datasets.MNIST.__name__ == "MNIST"
    assert vision.models.resnet18 is not None
    assert vision.transforms.functional is not None
    assert hasattr(torch.ops.torchvision, "nms")


def test_only_missing_schemas_are_defined(monkeypatch):
    # PyTorch refuses a second definition of an operator, so that this fails where nms is defined again.
    probe = "keyhole_probe() -> ()"
    monkeypatch.setattr(vision, "_SCHEMAS", {**vision._SCHEMAS, "keyhole_probe": probe})
    library = vision.define_missing_schemas()
    assert hasattr(torch.ops.torchvision, "keyhole_probe")
    with pytest.raises(RuntimeError, match="multiple times"):
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.mark.slow
def test_nothing_is_defined_where_the_operators_exist():
    program = (
        "import torch\n"
        "library = torch.library.Library('torchvision', 'FRAGMENT')\n"
        "for name in ('nms', 'qnms'):\n"
        "    library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "import federation.vision\n"
        "assert not hasattr(federation.vision, '_definitions')\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
