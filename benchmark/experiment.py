"""An experiment: what to train, who looks, which attacks, which victims. Checked, hashable, saved."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias

import pydantic

from attacks.base import Attack, Budget, build_attack
from benchmark.store import UNDEFENDED, VictimKind
from benchmark.validation import StrictModel, as_value_error, check_keywords, distinct, validated_part
from defenses.base import Defense
from defenses.registry import build_defense
from federation.partition import PARTITIONS
from federation.tasks import find_task
from federation.threat import Oracle, Position, parse_adversary
from federation.training import LocalTraining, Precision

LAST = "last"

History: TypeAlias = Literal["snapshot", "so-far"]
"""Which rounds an attack is shown: those of one snapshot, or of all snapshots up to it."""

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


class ProbeVictims(StrictModel):
    """Extra rounds from a checkpoint, each with one small private batch, in a stated regime."""

    kind: ClassVar[VictimKind] = "probe"

    count: int = pydantic.Field(ge=1)
    batch: int = pydantic.Field(1, ge=1)
    steps: int | None = pydantic.Field(None, ge=1)
    epochs: int = pydantic.Field(1, ge=1)
    rate: float = pydantic.Field(gt=0)

    @property
    def local(self) -> LocalTraining:
        """The victim's local training: all its images in one batch a step."""
        return LocalTraining(self.batch, self.rate, self.epochs, self.steps)

    @property
    def label(self) -> str:
        """As tables name it."""
        return f"probe b{self.batch} s{self.local.step_count(self.batch)} e{self.epochs}"


class RealRoundVictims(StrictModel):
    """Images that were trained on in a real round; this many of them, chosen in secret, are scored.

    `evaluations` is the attacks' budget here where it is not their own: all images of a victim are optimised together.
    """

    kind: ClassVar[VictimKind] = "real-round"
    label: ClassVar[str] = "real-round"

    images: int = pydantic.Field(8, ge=1)
    evaluations: int | None = pydantic.Field(None, ge=1)


class KeyedImageVictims(StrictModel):
    """Images that a client has classified by the server, through the network of a checkpoint under keys of its own.

    `eight_bit` says that keyed images are stored as 8-bit pictures on their way.
    """

    kind: ClassVar[VictimKind] = "keyed-image"

    count: int = pydantic.Field(ge=1)
    eight_bit: bool = False

    @property
    def label(self) -> str:
        """As tables name it."""
        return "keyed-image 8-bit" if self.eight_bit else "keyed-image"


Regime: TypeAlias = RealRoundVictims | ProbeVictims | KeyedImageVictims
"""The victims of a cell. Its `label` is what tables call it, and tells it from the others of an experiment."""

_SEVERAL_PROBES = pydantic.TypeAdapter(tuple[ProbeVictims, ...])


class Victims(StrictModel):
    """Which victims there are; `raw` leaves out the secret crop and jitter, for published figures, and is unranked.

    `probe` is one regime of probes, or a list of them, which labels tell apart. Each takes its images from the beginning
    of one secret order, so that regimes with as many images in all have the same.

    `history` is what an attack sees besides its victims: "snapshot", the observed rounds of the same snapshot alone;
    "so-far", those of all snapshots up to it, each with images of its own.
    """

    probe: ProbeVictims | tuple[ProbeVictims, ...] | None = None
    real_round: RealRoundVictims | None = None
    keyed_image: KeyedImageVictims | None = None
    raw: bool = False
    history: History = "snapshot"

    @pydantic.field_validator("probe", mode="wrap")
    @classmethod
    def _one_or_several(
        cls, value: Any, _: pydantic.ValidatorFunctionWrapHandler
    ) -> ProbeVictims | tuple[ProbeVictims, ...] | None:
        """Chosen by what is written there, so that an error names its own place and not that of every alternative."""
        if not isinstance(value, list | tuple):
            return None if value is None else ProbeVictims.model_validate(value)
        several = _SEVERAL_PROBES.validate_python(value)
        distinct(
            [probe.label for probe in several],
            "tables would call two regimes {}; put one into an experiment of its own",
        )
        return several

    @property
    def probes(self) -> tuple[ProbeVictims, ...]:
        """All regimes of probes, in their order; empty for none."""
        return self.probe if isinstance(self.probe, tuple) else tuple(filter(None, [self.probe]))

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """All victims that there are."""
        return (*filter(None, [self.real_round]), *self.probes, *filter(None, [self.keyed_image]))

    @pydantic.model_serializer(mode="wrap")
    def _usual_unsaid(self, serialise: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the usual history, and keyed images where there are none: earlier addresses and baselines hold."""
        content: dict[str, Any] = serialise(self)
        if self.history == "snapshot":
            content.pop("history", None)
        if self.keyed_image is None:
            content.pop("keyed_image", None)
        return content


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
