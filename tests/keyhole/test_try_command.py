"""`keyhole try` from the outside: figures, pictures, and one clear line for what cannot be tried."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import Result

from benchmark.bundles.shipped import FOLDER

pytestmark = pytest.mark.usefixtures("surroundings")

Invoke = Callable[..., Result]
OneLine = Callable[..., str]

EXAMPLES = Path(__file__).parents[2] / "examples"

FAST = ("--evaluations", 6)

PLUG_IN = '''
"""Attacks for tests."""

from dataclasses import dataclass, replace

import torch

from attacks.base import Attack, Need, Reconstruction, prior_guess


@dataclass(frozen=True)
class Grey(Attack):
    shade: float = 0.5
    name = "grey"

    def reconstruct(self, history, victims, *, generator, budget):
        return [self.guess(history[victim.observation], victim) for victim in victims]

    def guess(self, seen, victim):
        images = torch.full((victim.image_count, *seen.network.image_shape), self.shade)
        return Reconstruction(images, None, None, 0, 0.0, note="a guess", findings={"shade": self.shade})


class Bright(Grey):
    name = "bright"

    def guess(self, seen, victim):
        return replace(super().guess(seen, victim), images=torch.full((victim.image_count, 1, 28, 28), 1.5))


class Sparse(Grey):
    name = "sparse"
    needs = frozenset({Need.SPARSE_LAYERS})


class Curious(Grey):
    name = "curious"

    def guess(self, seen, victim):
        assert seen.auxiliary is None and not seen.scheme and not seen.transcript, "it declared no need of them"
        return super().guess(seen, victim)
'''


@pytest.fixture
def plug_in(tmp_path: Path) -> Path:
    file = tmp_path / "plug_in.py"
    file.write_text(PLUG_IN)
    return file


def test_json_has_every_image_and_its_mean(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("try", "cosine", *FAST, "--restarts", 2, "--trace", tmp_path / "trace.png", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["attack"] == "cosine"
    assert [image["victim"] for image in found["images"]] == [f"seed0/probe-0-{index}" for index in range(4)]
    for image in found["images"]:
        assert image["gain"] == pytest.approx(image["psnr"] - image["floor"])
    assert found["mean"]["psnr"] == pytest.approx(sum(image["psnr"] for image in found["images"]) / 4)
    assert {victim["evaluations"] for victim in found["victims"]} == {12}
    for trace, image in zip(found["traces"], found["images"], strict=True):
        assert trace["evaluations"][-1] == 6
        assert trace["psnr"][-1] == pytest.approx(image["psnr"])
    for name in ("picture", "trace"):
        assert Image.open(found[name]).size[0] > 300


def test_the_table_says_what_was_tried_and_where_the_pictures_are(invoke: Invoke, plug_in: Path) -> None:
    result = invoke(
        "try", f"{plug_in}:Grey", "--option", "shade=0.25", "--bundle", "lenet-zhu-batch4", "--trace", "t.png"
    )
    assert result.exit_code == 0, result.output
    assert "four digits an update, DLG's sigmoid LeNet, no defense: mnist5k-lenet-zhu, plain" in result.stdout
    assert "seed0/probe-0-1 image 3" in result.stdout
    assert "mean of 8" in result.stdout
    assert "seed0/probe-0-0: a guess; shade 0.25" in result.stdout
    assert "Picture: runs/try/grey-lenet-zhu-batch4.png" in result.stdout
    assert "No trace was drawn: grey kept none" in result.stdout
    assert Path("runs/try/grey-lenet-zhu-batch4.png").is_file()
    assert not Path("t.png").exists()


def test_an_attack_sees_no_more_than_it_declared(invoke: Invoke, plug_in: Path) -> None:
    assert invoke("try", f"{plug_in}:Curious").exit_code == 0


def test_an_oblivious_attack_gets_no_verdict(invoke: Invoke, plug_in: Path, tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "lenet5-keynet", tmp_path / "mine")
    result = invoke("try", f"{plug_in}:Grey", "--bundle", tmp_path / "mine", "--picture", "p.png")
    assert result.exit_code == 0, result.output
    assert "grey does not know how to undo keynet: no verdict" in result.stdout
    assert Path("p.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosin",), "did you mean cosine"),
        (("cosine", "--bundle", "lenet-zhu"), "did you mean lenet-zhu-"),
        (("cosine", "--option", "rate"), "an option is written KEY=VALUE, not 'rate'"),
        (("cosine", "--option", "speed=1"), "no option 'speed'"),
        (("cosine", "--option", "rate=fast"), "option 'rate'"),
        (("{plug_in}:Sparse",), "sparse cannot work on the bundle lenet-zhu-plain: needs sparse keyed layers"),
        (("{plug_in}:Bright",), "images must be finite and in [0, 1]"),
        (("keynet-gauge", "--bundle", "lenet-zhu-keynet"), "needs channels that can be rescaled"),
    ],
)
def test_what_cannot_be_tried_is_answered_in_one_line(
    arguments: tuple[str, ...], message: str, invoke: Invoke, one_line: OneLine, plug_in: Path
) -> None:
    given = [argument.replace("{plug_in}", str(plug_in)) for argument in arguments]
    assert message in one_line(invoke("try", *given))
    assert not Path("runs").exists()


def test_the_example_of_the_docs_is_an_attack(invoke: Invoke) -> None:
    result = invoke("try", f"{EXAMPLES / 'layer_cosine.py'}:LayerCosine", *FAST, "--json")
    assert result.exit_code == 0, result.output
    objectives = [victim["objective"] for victim in json.loads(result.stdout)["victims"]]
    assert all(0 < objective < 1 for objective in objectives)


def test_bundles_are_listed(invoke: Invoke) -> None:
    found = json.loads(invoke("list", "bundles", "--json").stdout)
    assert set(found) == {path.name for path in FOLDER.iterdir()}
    assert all(found.values())
