"""Every registered defense passes the conformance suite: one row a defense, one column a check."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

import pytest
from torch import Tensor, nn

from benchmark.audit.stand_in import stand_in
from benchmark.conformance import CHECKS, Subject, check_defense
from defenses.paillier.pride.defense import PaillierPride
from defenses.registry import DEFENSES, build_defense
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot

ROOT = SecretRoot(b"conformance tests of defenses..." * 2)
LACKING = (
    {} if find_spec("tenseal") else {"ckks": pytest.mark.skip(reason="needs the extra: pip install 'keyhole[ckks]'")}
)
NAMES = [pytest.param(name, marks=LACKING.get(name, ())) for name in DEFENSES.names()]
SUBJECTS = {name: Subject(build_defense(name), stand_in(), ROOT) for name in DEFENSES.names() if name not in LACKING}


@dataclass(frozen=True)
class ShortPride(PaillierPride):
    """With keys that are too short to hide anything: phe takes 10 ms to encrypt one value under a real one."""

    key_bits: int = 512
    smallest_bits: ClassVar[int] = 512


TWO_PARTY, ELIAS, KEYED_LEVELS = "paillier-pride, two-party", "qsgd, elias", "keynet before qsgd before paillier"
SUBJECTS |= {
    "paillier-pride": Subject(ShortPride(), stand_in(), ROOT),
    TWO_PARTY: Subject(ShortPride(form="two-party"), stand_in(), ROOT),
    ELIAS: Subject(build_defense(ELIAS, [{"qsgd": {"coding": "elias"}}]), stand_in(), ROOT),
    KEYED_LEVELS: Subject(build_defense(KEYED_LEVELS, ["keynet", "qsgd", "paillier"]), stand_in(), ROOT),
}


class Residual(nn.Module):
    """Batch normalisation, a depthwise convolution and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.depthwise = nn.Conv2d(8, 8, kernel_size=3, padding=1, groups=8)
        self.norm2 = nn.BatchNorm2d(8)
        self.pool = nn.AvgPool2d(4)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 8, 8] -> [N, 10]."""
        x = self.relu(self.norm(self.conv(x)))
        x = self.relu(self.norm2(self.depthwise(x)) + x)
        return self.fc(self.flatten(self.pool(x)))


def lenet5() -> nn.Module:
    return build_model("lenet5", (1, 12, 12), 10, seed=0)


def logistic() -> nn.Module:
    return build_model("logistic", (1, 6, 6), 10, seed=0)


NETWORKS = {
    "lenet5": Network(lenet5, (1, 12, 12), 10),
    "residual": Network(Residual, (1, 8, 8), 10),
    "logistic": Network(logistic, (1, 6, 6), 10),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", [*NAMES, TWO_PARTY, ELIAS, KEYED_LEVELS])
def test_conforms(name: str, check: str) -> None:
    assert CHECKS[check](SUBJECTS[name])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", NAMES)
def test_recovers_the_mean_on_other_networks(name: str, network: str) -> None:
    assert CHECKS["round trip"](SUBJECTS[name].on(NETWORKS[network]))


@pytest.mark.parametrize("name", NAMES)
def test_claims_hold_on_a_residual_network(name: str) -> None:
    assert CHECKS["wire claims"](SUBJECTS[name].on(NETWORKS["residual"]))


@pytest.mark.parametrize("name", NAMES)
def test_the_leaky_twin_claims_nothing_that_it_does_not_do(name: str) -> None:
    twin = Subject(build_defense(name).leaky_twin(), stand_in(), ROOT)
    assert CHECKS["wire claims"](twin)
    assert twin.defense.plain_share(twin.network) == 1


def test_the_four_defenses_are_registered() -> None:
    assert {"plain", "paillier", "keynet", "keynet-quantized"} <= set(DEFENSES.names())


def test_the_whole_suite_reports_every_check() -> None:
    findings = check_defense(build_defense("plain"), ROOT)
    assert [finding.check for finding in findings] == list(CHECKS)
    assert all(finding.passed and finding.detail for finding in findings)
