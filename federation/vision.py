"""The one door to torchvision.

PyPI's torchvision wheel is linked against CUDA. Beside a CPU-only torch its `_C` library does not load, nothing then
defines the operators `torchvision::nms` and `torchvision::qnms`, and `import torchvision` stops at `operator
torchvision::nms does not exist`, although Keyhole needs data sets, transforms and models only. This module defines the
schemas that are missing, when and only when the import stops for that reason, and imports again. The operators stay
without a kernel: calling one still fails.

Everything else takes torchvision from here (`from federation.vision import datasets`), and imports packages that import
torchvision themselves (lpips, stlpips_pytorch) after this module.
"""

from __future__ import annotations

import torch

_MISSING_OPERATOR = "operator torchvision::nms does not exist"
_SCHEMAS = {name: f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")}


def define_missing_schemas() -> torch.library.Library:
    """Define those of torchvision's suppression operators that no library has defined.

    Returns the library that holds the definitions: they live as long as it does.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    return library


try:
    import torchvision
except RuntimeError as error:
    if _MISSING_OPERATOR not in str(error):
        raise
    _definitions = define_missing_schemas()
    import torchvision

from torchvision import datasets, models, transforms  # noqa: E402  (the import above must come first)

__all__ = ["datasets", "models", "torchvision", "transforms"]
