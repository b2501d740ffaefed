"""iDLG: DLG whose label is read, exactly, from one image's update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.base import Budget, missing_need
from attacks.dlg import DLG
from attacks.idlg import IDLG
from federation.threat import Observation, Victim

BUDGET = Budget(evaluations=60)


def observed(client: Any, pictures: Tensor, label: int, seed: int) -> Observation:
    before = client.start(seed)
    after = client.trained(before, [(pictures[:1], torch.tensor([label]))])
    observation: Observation = client.observed(before, after)
    return observation


@pytest.mark.parametrize("label", range(4))
def test_the_label_is_exact_for_every_class_and_network(sigmoid_client: Any, pictures: Tensor, label: int) -> None:
    for seed in range(5):
        observation = observed(sigmoid_client, pictures, label, seed)
        generator = torch.Generator().manual_seed(seed)
        (found,) = IDLG().reconstruct(
            [observation], [Victim("v", 0, "client-0", 1)], generator=generator, budget=Budget(1)
        )
        assert found.labels is not None
        assert found.labels.tolist() == [label]


def test_the_image_is_found(sigmoid_client: Any, pictures: Tensor, generator: torch.Generator) -> None:
    observation = observed(sigmoid_client, pictures, 2, 0)
    (found,) = IDLG().reconstruct([observation], [Victim("v", 0, "client-0", 1)], generator=generator, budget=BUDGET)
    assert float((found.images - pictures[:1]).square().mean()) < 1e-3
    assert found.objective is not None
    assert found.objective < 1e-4


def test_more_than_one_image_is_not_its_business(sigmoid_client: Any, pictures: Tensor) -> None:
    before = sigmoid_client.start()
    after = sigmoid_client.trained(before, [(pictures[:2], torch.tensor([0, 1]))])
    observation = sigmoid_client.observed(before, after, images=2)
    assert missing_need(IDLG(), observation) == "needs updates made from a single image"
    assert missing_need(DLG(), observation) is None
