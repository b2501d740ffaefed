"""The public implementation of Inverting Gradients, `breaching` from PyPI, as a peer where it is installed.

It is by the paper's first author. Its package imports torchvision, hence the import of `federation.vision` before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from federation.normalisation import Normalisation

INSTALL = "pip install 'keyhole[peers]'"


def is_installed() -> bool:
    """Whether `breaching` can be imported here."""
    return find_spec("breaching") is not None


@dataclass(frozen=True)
class _Metadata:
    """What the package asks of the data; it reads both attributes and items."""

    shape: list[int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    modality: str = "vision"
    task: str = "classification"

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


def breaching_cosine(
    model: nn.Module,
    gradient: Mapping[str, Tensor],
    label: Tensor,
    *,
    shape: tuple[int, ...],
    normalisation: Normalisation,
    iterations: int,
    total_variation: float,
    start: Tensor,
) -> Tensor:
    """One trial of its `invertinggradients` configuration: the iterate with the lowest objective.

    Args:
        model: the network at the weights that the gradient was taken at.
        gradient: the observed gradient, by the model's parameter names.
        label: of the image, given to the attack, int64 [1].
        shape: (3, H, W) of the image: its total variation is of colour images alone.
        normalisation: of the client's pixels.
        iterations: gradient evaluations.
        total_variation: weight; its own default is 0.2.
        start: in normalised pixels, [1, C, H, W].

    Returns:
        Pixels in [0, 1], [1, C, H, W].
    """
    import federation.vision  # noqa: F401  (before anything that imports torchvision)

    import breaching  # isort: skip
    from omegaconf import OmegaConf

    configuration = OmegaConf.create(
        {
            **{"type": "invertinggradients", "attack_type": "optimization", "label_strategy": "iDLG"},
            **{
                "init": "randn",
                "normalize_gradients": False,
                "augmentations": None,
                "differentiable_augmentations": False,
            },
            "objective": {"type": "cosine-similarity", "scale": 1.0, "task_regularization": 0.0},
            "restarts": {"num_trials": 1, "scoring": "cosine-similarity"},
            "optim": {
                **{
                    "optimizer": "adam",
                    "signed": "hard",
                    "step_size": 0.1,
                    "boxed": True,
                    "step_size_decay": "step-lr",
                },
                **{
                    "max_iterations": iterations,
                    "langevin_noise": 0.0,
                    "warmup": 0,
                    "grad_clip": None,
                    "callback": 10**9,
                },
            },
            "regularization": {"total_variation": {"scale": total_variation, "inner_exp": 1, "outer_exp": 1}},
            "impl": {"dtype": "float", "mixed_precision": False, "JIT": None},
        }
    )
    attacker = breaching.attacks.prepare_attack(model, nn.CrossEntropyLoss(), configuration)
    metadata = _Metadata(list(shape), tuple(normalisation.mean), tuple(normalisation.deviation))
    payload = {"parameters": list(model.parameters()), "buffers": list(model.buffers()), "metadata": metadata}
    names = [name for name, _ in model.named_parameters()]
    shared = {
        "gradients": [gradient[name] for name in names],
        "buffers": None,
        "metadata": {"num_data_points": 1, "labels": label.reshape(1), "local_hyperparams": None},
    }
    found, _ = attacker.reconstruct([payload], [shared], {}, initial_data=start)
    with torch.no_grad():
        return normalisation.invert(found["data"])
