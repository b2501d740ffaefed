"""Spacings as read from real uploads, and the attack that weighs by them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.base import ATTACKS, Budget, Reconstruction, restricted
from attacks.cosine_quantized import CosineQuantized
from attacks.cosine_update import CosineUpdate
from attacks.engine.quantiser import SPACING, RoundedCosine
from attacks.level_spacing import level_spacing
from benchmark.audit.chosen import CLIENTS
from benchmark.conformance.attack_subject import EVERYONE, Attempt
from benchmark.conformance.updates import RATE, Updates, small_network, with_noise, with_update
from defenses.registry import build_defense
from federation.errors import MalformedMessage, UsageError
from federation.messages import Envelope, Transcript, tensors_to_bytes
from federation.protocol import Phase
from federation.qsgd import QsgdConfig, quantise
from federation.secret_root import SecretRoot
from federation.threat import AGGREGATE, Observation, PlainModel, Victim
from federation.weights import difference, flatten, floating

UPDATES = Updates(small_network(), SecretRoot(b"quantised updates under tests..." * 2))
STACKS: dict[str, dict[str, Any]] = {
    "a level": {"levels": 1},
    "levels": {"levels": 7, "bucket": 64},
    "2-norm, elias": {"levels": 15, "norm": "l2", "bucket": 50, "coding": "elias"},
}
VICTIM = Victim("victim", 0, CLIENTS[0], 1)


@cache
def history(stack: str) -> list[Observation]:
    return UPDATES.under(build_defense("tested", [{"qsgd": STACKS[stack]}]))


def update_of(seen: Observation) -> dict[str, Tensor]:
    assert isinstance(seen.view, PlainModel)
    return difference(seen.view.after[CLIENTS[0]], seen.view.before)


def found_by(attack: Any, seen: list[Observation], evaluations: int = 120) -> list[Reconstruction]:
    generator = torch.Generator().manual_seed(0)
    found: list[Reconstruction] = attack.reconstruct(
        seen, EVERYONE[: len(seen)], generator=generator, budget=Budget(evaluations)
    )
    return found


@pytest.mark.parametrize("stack", STACKS)
def test_spacings_are_the_norms_of_the_true_update_over_the_levels(stack: str) -> None:
    """Against the quantiser itself, on the update before it was rounded."""
    specs = floating(UPDATES.network.layout)
    config = QsgdConfig(**({"norm": "max"} | STACKS[stack]))
    for seen, plain in zip(history(stack), UPDATES.plain, strict=True):
        spacing = level_spacing(seen, CLIENTS[0])
        assert spacing is not None
        true = flatten(update_of(plain), specs)
        norms = quantise(true, config, torch.Generator()).norms.double()
        expected = (norms / config.levels).repeat_interleave(config.bucket)[: len(true)]
        # what was rounded is the difference of float32 weights, like `true`
        torch.testing.assert_close(flatten(spacing, specs).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("stack", STACKS)
def test_what_is_read_are_whole_levels_around_the_truth(stack: str) -> None:
    seen, true = history(stack)[0], update_of(UPDATES.plain[0])
    spacing = level_spacing(seen, CLIENTS[0])
    assert spacing is not None
    for name, read in update_of(seen).items():
        levels = read / spacing[name]
        # weights are float32, which fine levels make felt
        assert float((levels - levels.round()).abs().median()) < 0.01
        assert bool(((read - true[name]).abs() <= spacing[name] * 1.01 + 1e-6).all())


def test_spacings_stand_beside_the_gradients_in_their_units() -> None:
    seen = history("levels")[0]
    target, spacing = CosineQuantized().target(seen, VICTIM), level_spacing(seen, CLIENTS[0])
    assert spacing is not None
    for name, tensor in CosineUpdate().target(seen, VICTIM).items():
        assert torch.equal(target[name], tensor)
        torch.testing.assert_close(target[SPACING + name], (spacing[name] / RATE).float())


@pytest.mark.parametrize("defense", ["plain", "keynet-quantized"])
def test_without_a_known_quantiser_it_is_cosine_update(defense: str) -> None:
    seen = UPDATES.under(build_defense(defense))[:2]
    for ours, theirs in zip(found_by(CosineQuantized(), seen, 5), found_by(CosineUpdate(), seen, 5), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert ours.objective == theirs.objective


def test_who_does_not_know_the_scheme_runs_cosine_update() -> None:
    seen = [replace(history("levels")[0], scheme={})]
    (ours,), (theirs,) = found_by(CosineQuantized(), seen, 5), found_by(CosineUpdate(), seen, 5)
    assert torch.equal(ours.images, theirs.images)


def test_a_model_that_nobody_uploaded_has_no_spacing() -> None:
    assert level_spacing(history("levels")[0], AGGREGATE) is None


def test_it_runs_on_what_it_declares() -> None:
    attack = CosineQuantized()
    seen = [restricted(each, attack.needs) for each in history("levels")[:1]]
    assert torch.equal(found_by(attack, seen, 3)[0].images, found_by(attack, history("levels")[:1], 3)[0].images)
    assert ATTACKS.get("cosine-quantized") is CosineQuantized


def test_the_truth_explains_a_level_better_than_other_images() -> None:
    """At one level a sign the weighed distance still tells whose update it is."""
    attack, seen = CosineQuantized(), history("a level")
    distance = RoundedCosine(attack.tolerance)
    gradients = [CosineUpdate().target(plain, VICTIM) for plain in UPDATES.plain]
    for index, observation in enumerate(seen):
        target = {name: tensor[None] for name, tensor in attack.target(observation, VICTIM).items()}
        found = [float(distance({n: t[None] for n, t in each.items()}, target)) for each in gradients]
        assert min(found) == found[index]


def test_noise_in_place_of_updates_falls_to_the_floor() -> None:
    """The norms stay those of the true updates; they alone give no image."""
    noise = [with_noise(seen, index) for index, seen in enumerate(history("levels"))]
    true, false = (
        Attempt(tuple(found_by(CosineQuantized(), seen)), UPDATES.images) for seen in (history("levels"), noise)
    )
    assert true.gain > 2
    assert false.gain < 0


def test_an_update_of_nothing_has_no_signal() -> None:
    (found,) = found_by(CosineQuantized(), [with_update(history("levels")[0], torch.zeros_like)], 3)
    assert found.objective is None


@pytest.mark.parametrize(
    ("content", "message"),
    [({}, "no quantised values"), ({"codes": torch.zeros(3, dtype=torch.uint8)}, "begin with .* norms of 4")],
)
def test_an_upload_that_is_not_of_the_scheme_is_refused(content: dict[str, Tensor], message: str) -> None:
    seen = history("levels")[0]
    forged = Transcript(
        [
            Envelope(each.round, each.phase, each.sender, each.receiver, tensors_to_bytes(content))
            if each.phase == Phase.UPLOAD and each.sender == CLIENTS[0]
            else each
            for each in seen.transcript
        ]
    )
    with pytest.raises(MalformedMessage, match=message):
        level_spacing(replace(seen, transcript=forged), CLIENTS[0])


def test_labels_of_single_images_survive_one_level() -> None:
    found = found_by(CosineQuantized(), UPDATES.under(build_defense("l2", [{"qsgd": {"levels": 1, "norm": "l2"}}])), 1)
    assert [int(item.labels[0]) for item in found if item.labels is not None] == UPDATES.images.labels.tolist()


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(UsageError, match="must be above 0"):
        CosineQuantized(tolerance=tolerance)
