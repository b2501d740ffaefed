"""A network whose parameters are the known values: same logits, and the whole gradient's values at those places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.adaptive.paillier_quotient import PaillierQuotient
from attacks.adaptive.partly_known import PartlyKnown, label_from_rows, observed_in_part, own_name
from attacks.base import Budget
from attacks.engine.gradients import SingleGradient
from federation.threat import PlainModel, Position, Victim
from federation.weights import Kind

SENDER = "client-0"


def scattered(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every third value missing, the first tensor missing altogether, the last one whole."""
    generator = torch.Generator().manual_seed(4)
    after = {
        name: tensor + torch.randn(tensor.shape, generator=generator)
        for name, tensor in weights.items()
        if tensor.is_floating_point()
    }
    *others, _ = after
    for name in others:
        after[name].view(-1)[::3] = torch.nan
    after[others[0]].fill_(torch.nan)
    return after


@pytest.mark.parametrize("client_of", ["logistic_client", "sigmoid_client", "batch_norm_client"])
def test_logits_and_gradients_are_the_whole_networks(
    request: pytest.FixtureRequest, pictures: Tensor, client_of: str
) -> None:
    client = request.getfixturevalue(client_of)
    before = client.start()
    after = scattered(before)
    seen = observed_in_part(client.observed(before, before), before, after, SENDER)
    view = seen.view
    assert isinstance(view, PlainModel)
    parameters = {spec.name for spec in seen.network.layout if spec.kind is Kind.PARAMETER}
    known = {
        own_name(name) for name, tensor in client.network.build().named_parameters() if not after[name].isnan().all()
    }
    assert known <= parameters

    model, whole = seen.network.build(), client.network.build()
    assert isinstance(model, PartlyKnown)
    whole.load_state_dict(before)
    torch.testing.assert_close(model.eval()(pictures), whole.eval()(pictures))

    labels = torch.arange(2) % client.network.class_count
    simulated = SingleGradient(
        seen.network.build(),
        {name: tensor for name, tensor in view.before.items() if name in parameters},
        {name: tensor for name, tensor in view.before.items() if name not in parameters},
        batch_statistics=True,
    )
    normalised = (pictures[:2] - 0.3) / 0.4
    found = simulated(normalised[None], torch.nn.functional.one_hot(labels, client.network.class_count)[None].float())
    for name, gradient in client.gradient(before, pictures[:2], labels).items():
        places = ~after[name].isnan()
        if places.any():
            torch.testing.assert_close(found[own_name(name)][0].flatten(), gradient[places], atol=1e-5, rtol=1e-4)
            assert torch.equal(view.after[SENDER][own_name(name)].flatten(), after[name][places])
        else:
            assert own_name(name) not in found


def test_two_rows_are_enough_for_the_image(
    play: Callable[..., Any], pride: Callable[..., Any], pictures: Tensor
) -> None:
    played = play(pride(randomised=False, first_rows_only=True))
    observation, victim = played.observed(Position.EAVESDROPPER), Victim("v", 0, SENDER, 1)

    attack, generator = PaillierQuotient(inner="dlg"), torch.Generator().manual_seed(0)
    found = attack.reconstruct([observation], [victim], generator=generator, budget=Budget(150, restarts=6))[0]
    assert float((found.images - pictures[:1]).square().mean()) < 1e-4
    assert found.labels is None


def rows(label: int, classes: int = 5) -> Tensor:
    """The last layer's weight gradient of one image: (p - y) f."""
    generator = torch.Generator().manual_seed(label)
    share = torch.rand(classes, generator=generator).softmax(0)
    return (share - torch.eye(classes)[label])[:, None] * torch.randn(7, generator=generator)


@pytest.mark.parametrize("label", range(5))
def test_the_label_shows_in_two_rows_where_it_is_one_of_them(label: int) -> None:
    gradient = rows(label)
    gradient[2:] = torch.nan
    stands_for_others = 2
    assert label_from_rows({"weight": gradient}, 5) == (label if label < 2 else stands_for_others)


def test_no_label_is_read_where_rows_are_all_there_or_none() -> None:
    assert label_from_rows({"weight": rows(1)}, 5) is None
    assert label_from_rows({"weight": torch.full((5, 7), torch.nan)}, 5) is None
    assert label_from_rows({"bias": torch.zeros(5), "conv": torch.zeros(4, 3, 2, 2)}, 5) is None
