"""An experiment: what to train, who looks, which attacks, which victims. Checked, hashable, saved."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from attacks.base import Attack, Budget, build_attack
from benchmark.regimes import Victims
from benchmark.store import UNDEFENDED, VictimKind
from benchmark.validation import StrictModel, as_value_error, check_keywords, distinct, validated_part
from defenses.base import Defense
from defenses.registry import build_defense
from federation.partition import PARTITIONS
from federation.tasks import find_task
from federation.threat import Oracle, Position, parse_adversary
from federation.training import LocalTraining, Precision

LAST = "last"

BUILT_ORACLES = (Oracle.LABELS, Oracle.INITIAL_MODEL)


class Algorithm(StrictModel):
    """FedAvg (McMahan 2016) or FedPAQ (Reisizadeh 2020), Algorithm 1 of each: K, C, B, E, eta, and who has which data.

    FedPAQ counts local training in steps, tau a round whatever the size of a client's data, and its clients send the
    quantised difference to the round's global weights. Under FedAvg `steps` stops a client early. `precision` is that of
    local training.
    """

    name: Literal["fedavg", "fedpaq"] = "fedavg"
    clients: int = pydantic.Field(ge=1, le=10_000)
    fraction: float = pydantic.Field(1.0, gt=0, le=1)
    rounds: int = pydantic.Field(ge=1)
    batch_size: int = pydantic.Field(ge=1)
    epochs: int = pydantic.Field(1, ge=1)
    steps: int | None = pydantic.Field(None, ge=1)
    learning_rate: float = pydantic.Field(gt=0)
    partition: dict[str, Any] = pydantic.Field({"kind": "iid"})
    precision: Precision = "float32"

    @pydantic.field_validator("partition")
    @classmethod
    def _known_partition(cls, value: dict[str, Any]) -> dict[str, Any]:
        match value:
            case {"kind": str(kind), **options}:
                check_keywords(as_value_error(PARTITIONS.get, kind), options, given=("generator",))
            case _:
                raise ValueError(f"needs a kind: {', '.join(PARTITIONS.names())}")
        return value

    @pydantic.model_validator(mode="after")
    def _counted_in_steps(self) -> Algorithm:
        if self.name == "fedpaq" and self.steps is None:
            raise ValueError("fedpaq needs steps: tau, the local steps of a client in a round")
        if self.name == "fedpaq" and self.epochs != 1:
            raise ValueError("fedpaq counts local training in steps (tau), not in epochs; leave epochs out")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _float32_unsaid(self, serialise: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the usual precision: addresses and baselines from before there was another hold."""
        content: dict[str, Any] = serialise(self)
        if self.precision == "float32":
            content.pop("precision", None)
        return content

    @property
    def local(self) -> LocalTraining:
        """One client's training in one round."""
        epochs = None if self.name == "fedpaq" else self.epochs
        return LocalTraining(self.batch_size, self.learning_rate, epochs, self.steps, self.precision)

    @property
    def label(self) -> str:
        """As tables name it: the algorithm, how the data is divided, K, C where not all take part, FedPAQ's tau, and the
        precision where it is not float32."""
        share = f" C={self.fraction:g}" if self.fraction < 1 else ""
        steps = f" tau={self.steps}" if self.name == "fedpaq" else ""
        precision = f" {self.precision}" if self.precision != "float32" else ""
        return f"{self.name} {self.partition['kind']} K={self.clients}{share}{steps}{precision}"


class DefenseSpec(StrictModel):
    """A defense by its registered name, or a stack of stages under a name of its own."""

    name: str
    stages: tuple[str | dict[str, dict[str, Any]], ...] | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _can_be_built(self) -> DefenseSpec:
        as_value_error(self.build)
        return self

    def build(self) -> Defense:
        """The defense itself."""
        return build_defense(self.name, self.stages)


class AttackSpec(StrictModel):
    """An attack by its registered name or `path/to/file.py:ClassName`, its options and its budget."""

    name: str
    evaluations: int = pydantic.Field(ge=1)
    restarts: int = pydantic.Field(1, ge=1)
    options: dict[str, Any] = pydantic.Field({})

    @pydantic.model_validator(mode="after")
    def _can_be_built(self) -> AttackSpec:
        as_value_error(self.build)
        return self

    def build(self) -> Attack:
        """The attack itself."""
        return build_attack(self.name, self.options)

    @property
    def budget(self) -> Budget:
        """Gradient evaluations and restarts."""
        return Budget(self.evaluations, self.restarts)

    @property
    def label(self) -> str:
        """As tables name it: the attack's own name, not the file it came from."""
        return self.build().name


class FederationSpec(StrictModel):
    """One task trained by one algorithm under several defenses.

    `attacks` hold budgets and options of its own for attacks that the experiment lists under the same names.
    """

    task: str
    algorithm: Algorithm
    defenses: tuple[DefenseSpec, ...] = pydantic.Field(min_length=1)
    snapshots: tuple[int | Literal["last"], ...] = (0, "last")
    references: bool = True
    attacks: tuple[AttackSpec, ...] = ()

    @pydantic.model_validator(mode="after")
    def _check(self) -> FederationSpec:
        as_value_error(find_task, self.task)
        for snapshot in self.snapshots:
            if isinstance(snapshot, int) and not 0 <= snapshot < self.algorithm.rounds:
                raise ValueError(
                    f"snapshot {snapshot} is not a round of this training; rounds are 0 to {self.algorithm.rounds - 1}"
                )
        names = [defense.name for defense in self.defenses]
        if len(set(names)) < len(names):
            raise ValueError(f"a defense is named twice in {names}; give a stack a name of its own")
        distinct([attack.name for attack in self.attacks], "attacks: {} is given twice")
        for defense in self.defenses:
            self._check_updates(defense)
        return self

    def _check_updates(self, defense: DefenseSpec) -> None:
        """FedPAQ's messages are quantised differences; the undefended weights stand beside them as the reference."""
        if self.algorithm.name == "fedpaq" and defense.name != UNDEFENDED and not defense.build().quantises_updates:
            raise ValueError(
                f"under fedpaq clients send quantised updates, and defense {defense.name!r} does not; "
                f"take qsgd, keynet-quantized or a stack with qsgd ({UNDEFENDED} is the unquantised reference)"
            )

    @property
    def snapshot_rounds(self) -> tuple[int, ...]:
        """The snapshots as round numbers, each once, in order."""
        last = self.algorithm.rounds - 1
        return tuple(sorted({last if snapshot == LAST else int(snapshot) for snapshot in self.snapshots}))


class Experiment(StrictModel):
    """A whole experiment. `preset` is the sentence that pages show about its size and budgets."""

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    preset: str
    seeds: tuple[int, ...] = pydantic.Field(min_length=1)
    federations: tuple[FederationSpec, ...] = pydantic.Field(min_length=1)
    adversaries: tuple[str, ...] = ()
    attacks: tuple[AttackSpec, ...] = ()
    victims: Victims = Victims()
    oracles: tuple[Oracle, ...] = ()

    @pydantic.field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return distinct(value, "the seed {} is given twice")

    @pydantic.field_validator("federations")
    @classmethod
    def _distinct_federations(cls, value: tuple[FederationSpec, ...]) -> tuple[FederationSpec, ...]:
        distinct(
            [f"{spec.task}, {spec.algorithm.label}" for spec in value],
            "tables would call two of them {}; put one into an experiment of its own",
        )
        return value

    @pydantic.field_validator("adversaries")
    @classmethod
    def _known_adversaries(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            as_value_error(parse_adversary, name)
        return distinct(value, "{} is given twice")

    @pydantic.field_validator("attacks")
    @classmethod
    def _distinct_attacks(cls, value: tuple[AttackSpec, ...]) -> tuple[AttackSpec, ...]:
        distinct([spec.label for spec in value], "tables would call two of them {}; keep one, or name a class anew")
        return value

    @pydantic.field_validator("oracles")
    @classmethod
    def _built_oracles(cls, value: tuple[Oracle, ...]) -> tuple[Oracle, ...]:
        for oracle in value:
            if oracle not in BUILT_ORACLES:
                raise ValueError(f"the oracle {str(oracle)!r} is not built; there are: {', '.join(BUILT_ORACLES)}")
        return value

    @pydantic.model_validator(mode="after")
    def _check(self) -> Experiment:
        for name in self.adversaries:
            if parse_adversary(name).position is Position.COLLUSION:
                for federation in self.federations:
                    if federation.algorithm.clients < 2:
                        raise ValueError(f"adversary {name} needs two clients, {federation.task} has one")
        for federation in self.federations:
            if self.attacks and not federation.snapshots:
                raise ValueError(f"attacks need snapshots, {federation.task} has none")
            for attack in federation.attacks:
                if attack.name not in {listed.name for listed in self.attacks}:
                    raise ValueError(
                        f"{federation.task} has a budget for {attack.name}, which is not among the attacks"
                    )
        if self.attacks and not self.victims.regimes:
            raise ValueError("attacks need victims: give victims.probe, victims.real_round or victims.keyed_image")
        if self.attacks and not self.adversaries:
            raise ValueError("attacks need adversaries: give at least one")
        return self

    def attacks_on(self, federation: FederationSpec, kind: VictimKind) -> tuple[AttackSpec, ...]:
        """The experiment's attacks, with the budgets of the federation and of the kind of victim where they have some."""
        own = {attack.name: attack for attack in federation.attacks}
        chosen = tuple(own.get(attack.name, attack) for attack in self.attacks)
        real_round = self.victims.real_round
        if kind != "real-round" or real_round is None or real_round.evaluations is None:
            return chosen
        return tuple(attack.model_copy(update={"evaluations": real_round.evaluations}) for attack in chosen)


def validated(content: Any, where: str) -> Experiment:
    """The experiment that `content` describes; raises UsageError with one line that names the place."""
    return validated_part(Experiment, content, where)
