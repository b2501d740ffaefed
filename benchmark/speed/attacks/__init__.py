"""How strong and how fast the attacks are, against a peer in the same run: one subject a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from benchmark.speed.attacks import cifar, cosine_speed, image_rates, keynet
from benchmark.speed.attacks.figures import CaseResult
from benchmark.speed.attacks.report import AttackFigures
from benchmark.speed.measure import Stage, quiet
from federation.errors import UsageError

Case = Callable[[Stage], CaseResult]

CASES: Mapping[str, Case] = {
    "cosine-relu": partial(cosine_speed.measure, cosine_speed.RELU),
    "cosine-sigmoid": partial(cosine_speed.measure, cosine_speed.SIGMOID),
    "cosine-convnet": partial(cosine_speed.measure, cosine_speed.CONVNET),
    "dlg-mnist": partial(image_rates.measure_dlg, image_rates.MNIST),
    "dlg-photos": partial(image_rates.measure_dlg, image_rates.PHOTOS),
    "analytic-mnist": partial(image_rates.measure_analytic, image_rates.MNIST),
    "analytic-photos": partial(image_rates.measure_analytic, image_rates.PHOTOS),
    "cifar": cifar.measure,
    "keynet": keynet.measure,
}
"""What `keyhole bench attacks` measures, by name."""


def measure_attacks(
    names: Sequence[str] = (), *, cases: Mapping[str, Case] = CASES, progress: Stage = quiet
) -> AttackFigures:
    """Run the named cases in order, or all of them, on one thread.

    Args:
        names: of the cases.
        cases: those there are.
        progress: called with the stage, the steps done and all steps.

    Raises:
        UsageError: for an unknown name; lists those there are.
    """
    unknown = [name for name in names if name not in cases]
    if unknown:
        raise UsageError(f"no case {', '.join(unknown)}; there are {', '.join(cases)}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return AttackFigures([cases[name](progress) for name in names or cases])
    finally:
        torch.set_num_threads(threads)
