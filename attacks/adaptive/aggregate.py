"""What a released global model says of those whose mean it is: an update like any other, of a larger batch.

Whatever uploads travel under, clients recover the model that a round ends in. That model less the one before is the
weighted mean of the cohort's updates, sum_k (n_k / n) u_k. Who knows some of them, as a client knows its own, takes them
out first: with two parties the other's update is left, to rounding. Of parties P that take one step each on batches in
proportion to their n_k, what is left is exactly the step of one party on all of P's images; of several steps, or other
batches, it is so to first order in the rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from attacks.adaptive.difference import other_contribution
from attacks.adaptive.pride import PrideRules
from attacks.adaptive.recovery import Recovery, WeightRecovery
from attacks.base import ATTACKS, Budget, History, Need, Reconstruction, restricted
from federation.threat import AGGREGATE, Observation, Oracle, PlainModel, Victim
from federation.weights import Weights


@ATTACKS.register("aggregate")
@dataclass(frozen=True)
class Aggregate(WeightRecovery):
    """Take every update that is read in clear out of the released mean, and invert the rest as a larger batch.

    Updates count as known where the view reads them: a client's own upload, those of all who collude. Of the images of a
    mean of several parties the first are returned: nothing tells whose is whose. An update of the victim's own that is
    read in clear is inverted itself.
    """

    name: ClassVar[str] = "aggregate"
    reference: ClassVar[str] = "Pavlak 2018, threats; McMahan et al. 2017"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PLAIN_MODEL, Need.SCHEME})
    reads_aggregate: ClassVar[bool] = True

    def recover_hidden(self, observation: Observation, victim: Victim) -> Recovery:
        """Nothing: what a released model tells has been put in the victim's place."""
        return Recovery.nothing("the position reads no released model in clear")

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        """See `Attack.reconstruct`."""
        means = [_Mean.of(restricted(history[victim.observation], self.needs), victim) for victim in victims]
        items = super().reconstruct(
            [mean.observation for mean in means],
            [
                replace(victim, observation=index, image_count=mean.images)
                for index, (victim, mean) in enumerate(zip(victims, means, strict=True))
            ],
            generator=generator,
            budget=budget,
        )
        return [
            mean.share_of(victim.image_count, item) for victim, mean, item in zip(victims, means, items, strict=True)
        ]


@dataclass(frozen=True)
class _Mean:
    """A mean of updates as if it were one party's.

    Attributes:
        observation: with the mean in the victim's place.
        parties: how many it is of.
        images: how many images they trained on, where the victim's are as many as it has.
    """

    observation: Observation
    parties: int
    images: int

    @classmethod
    def of(cls, observation: Observation, victim: Victim) -> _Mean:
        view, counts = observation.view, observation.facts.sample_counts
        assert isinstance(view, PlainModel), "the harness checked what this attack needs"
        if view.hidden_by or victim.sender in view.after or AGGREGATE not in view.after:
            return cls(observation, 1, victim.image_count)
        others = [name for name in counts if name not in view.after]
        held = sum(counts[name] for name in others)
        facts = replace(
            observation.facts,
            sample_counts={victim.sender: held},
            batch_size=sum(min(observation.facts.batch_size, counts[name]) for name in others),
        )
        clear = replace(
            observation,
            view=PlainModel(view.before, {victim.sender: {**view.before, **_rest(observation, view, counts)}}),
            facts=facts,
            oracles=observation.oracles if len(others) == 1 else _without_labels(observation),
        )
        return cls(
            clear, len(others), max(victim.image_count, round(victim.image_count * held / counts[victim.sender]))
        )

    def share_of(self, count: int, item: Reconstruction) -> Reconstruction:
        """What is returned of the mean's reconstruction for a victim of so many images."""
        if self.parties == 1:
            return item
        remark = f"the mean of {self.parties} parties, whose images cannot be told apart"
        return replace(
            item,
            images=item.images[:count],
            labels=None if item.labels is None else item.labels[:count],
            recovered_weights=None,
            findings={
                **item.findings,
                "parties in the mean": float(self.parties),
                "images in the mean": float(self.images),
            },
            note="; ".join(part for part in (item.note, remark) if part),
            trace=tuple(replace(point, images=point.images[:count]) for point in item.trace),
        )


def _rest(observation: Observation, view: PlainModel, counts: Mapping[str, int]) -> Weights:
    """The mean of those whose updates are not read, NaN for what is not averaged."""
    rules = PrideRules.known_to(observation) or PrideRules(cloud_half=False)
    layout = observation.network.layout
    rest = rules.sent_values(view.after[AGGREGATE], layout)
    if rules.cloud_half:
        rest = other_contribution(rest, rules.cloud_values(view.before, layout), 1 / 2)
    left = 1.0
    for name in counts.keys() & view.after.keys():
        share = 1 / len(counts) if rules.cloud_half else counts[name] / sum(counts.values())
        rest = other_contribution(rest, rules.sent_values(view.after[name], layout), share / left)
        left -= share
    return rules.weights_from(rest, layout)


def _without_labels(observation: Observation) -> Mapping[Oracle, torch.Tensor]:
    """What is granted but for labels, which are the victim's alone."""
    return {oracle: value for oracle, value in observation.oracles.items() if oracle is not Oracle.LABELS}
