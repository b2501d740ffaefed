"""A party's weights for a cloud that holds the private key: averaging after decryption protects nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attacks.adaptive.pride import CLOUD_SUM, STAGE, PrideRules
from attacks.adaptive.recovery import Recovery, WeightRecovery
from attacks.base import ATTACKS, Need
from federation.threat import Observation, PlainModel, Victim


@ATTACKS.register("paillier-cloud")
@dataclass(frozen=True)
class PaillierCloud(WeightRecovery):
    """Subtract the cloud's own weights from what a party's ciphertexts decrypt to, and invert the party's update.

    With c_k = (w_0 + a_k w_k) / d as decrypted, w_k = (d c_k - w_0) / a_k; d, a_k and w_0 are public or the cloud's own.
    """

    name: ClassVar[str] = "paillier-cloud"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PLAIN_MODEL, Need.SCHEME})
    undoes: ClassVar[frozenset[str]] = frozenset({CLOUD_SUM})
    made_for: ClassVar[frozenset[str]] = frozenset({STAGE})

    def recover_hidden(self, observation: Observation, victim: Victim) -> Recovery:
        """The victim's weights, up to the rounding of the view that its ciphertexts were decrypted into."""
        view, rules = observation.view, PrideRules.known_to(observation)
        assert isinstance(view, PlainModel), "the harness checked what this attack needs"
        if view.hidden_by != {CLOUD_SUM} or victim.sender not in view.after or rules is None:
            return Recovery.nothing(f"there is no sum of {victim.sender}'s weights and the cloud's to undo")
        layout = observation.network.layout
        summed = rules.divisor * rules.sent_values(view.after[victim.sender], layout)
        own = rules.cloud_values(view.before, layout)
        factor = rules.factor(observation.facts.sample_counts, victim.sender)
        return Recovery(view.before, rules.weights_from((summed - own) / factor, layout))
