"""What `keynet-gauge` finds of LeNet-5's gains, how long it takes, and what its images are worth: docs/keynet-gauge.md.

    pytest tests/benchmarks/bench_keynet_gauge.py -p no:xdist -s

Digits of mnist5k, one image and one step an update, gains log-uniform on [1/2, 2]. Quality takes some minutes.
"""

from __future__ import annotations

import statistics
from typing import Any

import keyed_rounds
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from attacks.adaptive.gain_estimate import estimate_gains
from attacks.adaptive.keynet_gauge import KeyNetGauge
from attacks.adaptive.rescaling import RescalingEquations
from attacks.base import Attack, Budget
from attacks.cosine import Cosine
from benchmark.metrics.pixel import psnr, to_eight_bit
from defenses.quantization import Quantization
from federation.threat import Victim
from federation.weights import Weights

BUDGET = Budget(evaluations=800)
OPTIONS = {"rate": 0.03, "decay": 0.3}
VICTIMS = 16
DIGITS = keyed_rounds.mnist_digits()
CODECS = {"keynet": None, "keynet-quantized": Quantization(127, "max", 512)}


@pytest.fixture(params=[0, 300], ids="after {} steps".format, scope="module")
def start(request: pytest.FixtureRequest) -> Weights:
    torch.set_num_threads(1)
    return keyed_rounds.trained(keyed_rounds.network("lenet5"), request.param)


@pytest.mark.parametrize("updates", [1, 2, 5, 10, 40])
@pytest.mark.parametrize("defense", CODECS)
def test_gains(benchmark: BenchmarkFixture, start: Weights, defense: str, updates: int) -> None:
    keyed = keyed_rounds.play_rounds(DIGITS, keyed_rounds.keynet(CODECS[defense]), rounds=-(-updates // 2), start=start)
    seen = keyed_rounds.updates_of(keyed.observations)[:updates]
    equations = RescalingEquations(keyed.observations[0].network, seen, frozenset({1, 2, 3, 4}))
    estimate = benchmark.pedantic(estimate_gains, args=(equations, 2.0), rounds=1)
    moved = equations.by_space(equations.moved())
    wrong = {
        space: (gains.log() - torch.from_numpy(keyed.keys.monomial[space].gains).log()).abs()
        for space, gains in estimate.gains.items()
    }
    weighted = max(float((wrong[space] * moved[space]).sum() / moved[space].sum()) for space in wrong)
    median = max(float(values.median()) for values in wrong.values())
    print(
        f"\n{defense}, {updates} updates: |log error| median {median:.0e}, weighted {weighted:.0e}, "
        f"expected {estimate.error:.0e}, residual {estimate.residual:.0e} (worst space)"
    )
    assert estimate.updates == updates


def test_images(benchmark: BenchmarkFixture, start: Weights) -> None:
    victims = [Victim(str(index), index, "client-0", 1) for index in range(VICTIMS)]
    original = to_eight_bit(DIGITS.pixels[: 2 * VICTIMS : 2])

    def quality(attack: Attack, **options: Any) -> float:
        stack = keyed_rounds.keynet(**options)
        observations = keyed_rounds.play_rounds(DIGITS, stack, rounds=VICTIMS, start=start).observations
        generator = torch.Generator().manual_seed(0)
        found = attack.reconstruct(observations, victims, generator=generator, budget=BUDGET)
        values = psnr(original, to_eight_bit(torch.cat([item.images for item in found]))).tolist()
        print(f"{options}, {attack.name}: {statistics.mean(values):.1f} dB, median {statistics.median(values):.1f}")
        return statistics.mean(values)

    gauge = KeyNetGauge(inner_options=OPTIONS)
    print()
    plain = quality(Cosine(**OPTIONS), publish_key=True)
    quality(Cosine(**OPTIONS))
    quality(gauge, gain_range=1.0)
    quality(gauge, codec=CODECS["keynet-quantized"])
    opened = benchmark.pedantic(quality, args=(gauge,), rounds=1)
    assert opened > plain - 0.5
