"""About how long an experiment takes here: the number of its gradient evaluations, times what one costs right now."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch

from attacks.base import Need
from attacks.engine.chain import single_gradient
from attacks.engine.objectives import cosine_distance
from benchmark.experiment import Experiment
from benchmark.harness import CellGroup, cell_groups, training_plans
from benchmark.regimes import KeyedImageVictims, ProbeVictims
from benchmark.training_plan import TrainingPlan
from benchmark.workspace import Workspace
from defenses.base import Claim
from federation.seeds import torch_generator
from federation.threat import Knowledge, Position
from federation.training import cross_entropy_gradients

_SECONDS_TO_START = 8.0
_SECONDS_TO_SCORE = 0.4


def estimated_seconds(experiment: Experiment, workspace: Workspace, workers: int) -> float:
    """A rough forecast of the wall-clock seconds of a run from nothing, without what defenses take to protect."""
    plans = training_plans(experiment, workspace)
    groups = cell_groups(experiment, plans)
    work = sum(_training_seconds(plan) for plan in plans) + sum(_group_seconds(group) for group in groups)
    return _SECONDS_TO_START + work / workers


def _training_seconds(plan: TrainingPlan) -> float:
    local, rounds = plan.algorithm.local, plan.algorithm.rounds
    steps = sum(local.step_count(len(shard)) for shard in plan.shards) * plan.algorithm.fraction * rounds
    references = 2 if plan.defense_spec.name == "plain" and plan.federation.references else 0
    return steps * (1 + references) * _step_seconds(_Key(plan), local.batch_size)


def _group_seconds(group: CellGroup) -> float:
    victims, images = _victims(group)
    runs = _distinct_runs(group)
    if not runs or isinstance(group.victims, KeyedImageVictims):  # no gradients are evaluated to open images
        return 0.0
    evaluations = group.attack.evaluations * group.attack.restarts * victims
    return runs * (evaluations * images * _evaluation_seconds(_Key(group.plan)) + _SECONDS_TO_SCORE)


def _victims(group: CellGroup) -> tuple[int, int]:
    """(victims, images a victim)."""
    victims = group.victims
    if isinstance(victims, ProbeVictims):
        return victims.count, victims.batch
    return (victims.count, 1) if isinstance(victims, KeyedImageVictims) else (1, victims.images)


def _distinct_runs(group: CellGroup) -> int:
    """How often the attack really runs: adversaries to whom everything looks the same share a run."""
    claims = set(group.plan.defense.claims(group.plan.network).values())
    undefended = claims == {Claim.PLAIN}
    looks: set[str] = set()
    for cell in group.cells:
        holds_key = cell.adversary.position in (Position.COLLUSION, Position.CLIENT, Position.KEY_AGENT)
        if undefended:
            looks.add("plain")
        elif holds_key:
            looks.add("decoded")
        elif Claim.HIDDEN not in claims and cell.adversary.knowledge is Knowledge.OBLIVIOUS:
            looks.add("as it is")
    return len(looks) if Need.PLAIN_MODEL in group.cells[0].attack.needs else 0


class _Key:
    """A training plan as a cache key: what is timed depends on the task alone."""

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan = plan

    def __hash__(self) -> int:
        return hash(self.plan.task)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.plan.task == self.plan.task


@lru_cache
def _step_seconds(key: _Key, batch_size: int) -> float:
    network = key.plan.network
    model = network.build()
    generator = torch_generator("estimate")
    images = torch.randn(batch_size, *network.image_shape, generator=generator)
    labels = torch.randint(network.class_count, (batch_size,), generator=generator)
    return _best_of(lambda: cross_entropy_gradients(model, images, labels))


@lru_cache
def _evaluation_seconds(key: _Key) -> float:
    """One gradient evaluation of one trial, when several are evaluated together as gradient matching does."""
    network, trials = key.plan.network, 8
    model = network.build()
    generator = torch_generator("estimate")
    update = single_gradient(model, {name: parameter.detach() for name, parameter in model.named_parameters()})
    images = torch.randn(trials, 1, *network.image_shape, generator=generator, requires_grad=True)
    labels = torch.eye(network.class_count)[torch.zeros(trials, 1, dtype=torch.int64)]
    target = {name: gradient.detach() for name, gradient in update(torch.zeros_like(images), labels).items()}
    return _best_of(lambda: torch.autograd.grad(cosine_distance(update(images, labels), target).sum(), images)) / trials


def _best_of(action: Callable[[], object], repeats: int = 5) -> float:
    """The least wall-clock seconds of an action, on one thread as in the workers."""
    seconds = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(repeats):
            start = time.perf_counter()
            action()
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(seconds)
