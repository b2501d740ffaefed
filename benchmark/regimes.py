"""Regimes: which victims an experiment has, and what an attack sees besides them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias

import pydantic

from benchmark.store import VictimKind
from benchmark.validation import StrictModel, distinct
from federation.training import LocalTraining

History: TypeAlias = Literal["snapshot", "so-far"]
"""Which rounds an attack is shown: those of one snapshot, or of all snapshots up to it."""


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

    `keyed_image` has images sent to be classified, which are no updates.

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
