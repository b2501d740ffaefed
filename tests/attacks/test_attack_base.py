"""What is common to attacks: needs, the part of an observation that they see, the prior guess, and how one is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.base import (
    ATTACKS,
    Attack,
    Budget,
    History,
    Need,
    Reconstruction,
    build_attack,
    missing_need,
    prior_guess,
    restricted,
)
from attacks.cosine import Cosine
from attacks.dlg import DLG
from federation.errors import UsageError
from federation.messages import Envelope, Transcript
from federation.threat import Auxiliary, Ciphertext, Nothing, Observation, Oracle, SparseLayers, Victim


@dataclass(frozen=True)
class Nobody(Attack):
    """An attack that is never run."""

    strength: int = 3
    mode: str = "soft"

    name = "nobody"

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        raise NotImplementedError


def needing(*needs: Need) -> type[Attack]:
    return type("Needing", (Nobody,), {"needs": frozenset(needs)})


@pytest.fixture
def seen(logistic_client: Any, pictures: Tensor) -> Observation:
    """An observation with every optional part."""
    before = logistic_client.start()
    after = logistic_client.trained(before, [(pictures[:1], torch.tensor([2]))])
    return replace(
        logistic_client.observed(before, after),
        transcript=Transcript([Envelope(0, "upload", "client-0", "server", b"1")]),
        held={"client-1": b"key"},
        scheme={"keynet": {"gain_range": 2.0}},
        own_updates={"client-1": before},
        auxiliary=Auxiliary(pictures[1:], torch.zeros(len(pictures) - 1, dtype=torch.int64)),
    )


def test_no_need_is_missing_where_everything_is_there(seen: Observation) -> None:
    every = needing(*(set(Need) - {Need.SPARSE_LAYERS, Need.KEYED_IMAGES}))
    everything = replace(seen, oracles={Oracle.INITIAL_MODEL: torch.zeros(1)})
    assert missing_need(every, everything) is None
    assert missing_need(Nobody(), seen) is None


MODEL = "needs an update that can be evaluated as a model"


@dataclass(frozen=True)
class Particular(Nobody):
    """Begins on some observations only, although its needs are met."""

    def lacks(self, observation: Observation) -> str | None:
        return "a later round" if observation.round == 0 else None


def test_what_an_attack_itself_finds_wanting_is_named(seen: Observation) -> None:
    assert missing_need(Particular(), seen) == "needs a later round"
    assert missing_need(Particular(), replace(seen, round=1)) is None
    assert missing_need(Particular, seen) is None, "only a built attack can look"


@pytest.mark.parametrize(
    ("need", "changes", "message"),
    [
        (Need.PLAIN_MODEL, {"view": Ciphertext("paillier", 10)}, f"{MODEL} (it reads ciphertext)"),
        (Need.PLAIN_MODEL, {"view": Nothing("no")}, f"{MODEL} (it reads nothing)"),
        (Need.SPARSE_LAYERS, {}, "needs sparse keyed layers (it reads something else)"),
        (Need.AUXILIARY, {"auxiliary": None}, "needs auxiliary images"),
        (Need.OWN_UPDATE, {"own_updates": {}}, "needs the update of a client that the position holds"),
        (Need.INITIAL_MODEL, {}, "needs the initial weights"),
    ],
)
def test_a_missing_part_is_named(seen: Observation, need: Need, changes: dict[str, Any], message: str) -> None:
    assert missing_need(needing(need), replace(seen, **changes)) == message


@pytest.mark.parametrize(
    ("facts", "missing"),
    [
        ({"steps": 2}, {Need.SINGLE_STEP, Need.SINGLE_IMAGE}),
        ({"batch_size": 2}, {Need.SINGLE_IMAGE}),
        ({}, set()),
    ],
)
def test_what_the_update_was_made_from_counts(seen: Observation, facts: dict[str, int], missing: set[Need]) -> None:
    changed = replace(seen, facts=replace(seen.facts, **facts))
    found = {need for need in (Need.SINGLE_STEP, Need.SINGLE_IMAGE) if missing_need(needing(need), changed)}
    assert found == missing


def test_sparse_layers_meet_their_need(seen: Observation) -> None:
    sparse = replace(seen, view=SparseLayers({}, {}))
    assert missing_need(needing(Need.SPARSE_LAYERS), sparse) is None
    assert missing_need(needing(Need.PLAIN_MODEL), sparse) is not None


@pytest.mark.parametrize("need", [Need.TRANSCRIPT, Need.HELD, Need.SCHEME, Need.AUXILIARY, Need.OWN_UPDATE])
def test_an_attack_sees_the_optional_parts_that_it_needs(seen: Observation, need: Need) -> None:
    parts = {
        Need.TRANSCRIPT: "transcript",
        Need.HELD: "held",
        Need.SCHEME: "scheme",
        Need.AUXILIARY: "auxiliary",
        Need.OWN_UPDATE: "own_updates",
    }
    narrowed = restricted(seen, frozenset({need}))
    for other, name in parts.items():
        if other is need:
            assert getattr(narrowed, name) is getattr(seen, name)
        else:
            assert not getattr(narrowed, name)
    assert (narrowed.view, narrowed.facts, narrowed.network) == (seen.view, seen.facts, seen.network)


def test_the_prior_guess_is_the_mean_public_image(seen: Observation, pictures: Tensor) -> None:
    guess = prior_guess(seen, Victim("v", 0, "client-0", 3))
    assert guess.images.shape == (3, 1, 6, 6)
    eight_bit = (pictures[1:] * 255).round() / 255
    torch.testing.assert_close(guess.images.float(), eight_bit.mean(0).expand(3, -1, -1, -1), atol=1e-6, rtol=0)
    assert (guess.objective, guess.labels, guess.evaluations) == (None, None, 0)
    assert "no signal" in guess.note


def test_the_prior_guess_without_public_images_is_grey(seen: Observation) -> None:
    guess = prior_guess(replace(seen, auxiliary=None), Victim("v", 0, "client-0", 2))
    assert torch.equal(guess.images, torch.full((2, 1, 6, 6), 0.5))


def test_an_attack_is_built_by_name_with_options() -> None:
    assert build_attack("cosine", {"rate": 0.5}) == Cosine(rate=0.5)
    assert build_attack("dlg") == DLG()


def test_a_misspelt_name_lists_near_matches() -> None:
    with pytest.raises(UsageError, match=r"no attack is called 'cosin'; did you mean cosine"):
        build_attack("cosin")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strenght": 1}, r"attack 'nobody-test': no option 'strenght'; there are: strength, mode"),
        ({"strength": "high"}, r"attack 'nobody-test': option 'strength'"),
    ],
)
def test_options_are_checked(monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str) -> None:
    monkeypatch.setitem(ATTACKS._entries, "nobody-test", Nobody)
    with pytest.raises(UsageError, match=message):
        build_attack("nobody-test", options)
    assert build_attack("nobody-test", {"strength": 5}) == Nobody(strength=5)


PLUG_INS = """
from attacks.base import Attack

class Whole(Attack):
    name = "whole"

    def reconstruct(self, history, victims, *, generator, budget):
        return []

class Nameless(Attack):
    def reconstruct(self, history, victims, *, generator, budget):
        return []

class Idle(Attack):
    name = "idle"

class Other:
    pass
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nameless", "is not a whole attack: it lacks name"),
        ("Idle", "is not a whole attack: it lacks reconstruct"),
        ("Other", "does not derive from"),
        ("Missing", "has no class 'Missing'"),
    ],
)
def test_a_class_from_a_file_must_be_a_whole_attack(tmp_path: Path, name: str, message: str) -> None:
    file = tmp_path / "plug_ins.py"
    file.write_text(PLUG_INS)
    assert build_attack(f"{file}:Whole").name == "whole"
    with pytest.raises(UsageError, match=message):
        build_attack(f"{file}:{name}")


def test_an_entry_that_is_no_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTACKS._entries, "no-class", lambda: Nobody())  # type: ignore[arg-type, misc]
    with pytest.raises(UsageError, match=r"does not derive from attacks\.base\.Attack"):
        build_attack("no-class")
