"""LPIPS and ST-LPIPS: published distances, the formula written out on a planted trunk, and how images are prepared."""

from __future__ import annotations

import importlib.resources
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmark.metrics.image_files import read_image
from benchmark.metrics.perceptual import Perceptual, Unavailable, enlarged_size, load_lpips, load_st_lpips, prepare
from benchmark.metrics.trunk import ALEXNET_CONVOLUTIONS, TRUNK_VARIABLE
from federation.errors import DataError


def random_images(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture(scope="module")
def planted_weights() -> dict[str, torch.Tensor]:
    """A trunk with He-scaled random weights, under which features neither vanish nor explode."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer, kernel in ALEXNET_CONVOLUTIONS.items():
        fan_in = kernel[1] * kernel[2] * kernel[3]
        weights[f"{layer}.weight"] = torch.randn(kernel, generator=generator) * (2 / fan_in) ** 0.5
        weights[f"{layer}.bias"] = torch.randn(kernel[:1], generator=generator) * 0.1
    return weights


@pytest.fixture(scope="module")
def planted(planted_weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Perceptual:
    path = tmp_path_factory.mktemp("trunk") / "planted.pth"
    torch.save(planted_weights, path)
    metric = load_lpips(path)
    assert isinstance(metric, Perceptual)
    assert metric.source == str(path)
    return metric


@pytest.fixture(scope="module")
def shift_tolerant() -> Perceptual:
    return load_st_lpips()


@pytest.fixture(params=["planted", "shift_tolerant"])
def metric(request: pytest.FixtureRequest) -> Perceptual:
    return request.getfixturevalue(request.param)


def features_by_hand(weights: dict[str, torch.Tensor], images: torch.Tensor) -> list[torch.Tensor]:
    """AlexNet's five rectified layers (strides and paddings as torchvision publishes them), unit length in channels."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    hidden = ((images.double() - shift[:, None, None]) / scale[:, None, None]).double()
    found = []
    for layer, stride, padding, pool in [
        (0, 4, 2, False),
        (3, 1, 2, True),
        (6, 1, 1, True),
        (8, 1, 1, False),
        (10, 1, 1, False),
    ]:
        if pool:
            hidden = F.max_pool2d(hidden, 3, 2)
        kernel, bias = weights[f"features.{layer}.weight"].double(), weights[f"features.{layer}.bias"].double()
        hidden = F.relu(F.conv2d(hidden, kernel, bias, stride=stride, padding=padding))
        found.append(hidden / hidden.square().sum(1, keepdim=True).sqrt().clamp(min=1e-10))
    return found


def test_lpips_agrees_with_the_paper_s_formula(planted: Perceptual, planted_weights: dict[str, torch.Tensor]) -> None:
    """Zhang 2018, eq. 1: sum over layers of the mean over places of |w * (y - y0)|^2, the heads holding w^2."""
    a, b = random_images(1, 4, 3, 64, 64), random_images(2, 4, 3, 64, 64)
    heads_file = importlib.resources.files("lpips") / "weights/v0.1/alex.pth"
    with heads_file.open("rb") as file:
        heads = torch.load(file, map_location="cpu", weights_only=True)
    scaled = [images.double() / 127.5 - 1 for images in (a, b)]
    layers = zip(*(features_by_hand(planted_weights, images) for images in scaled), strict=True)
    expected = torch.zeros(4, dtype=torch.float64)
    for number, (first, second) in enumerate(layers):
        head = heads[f"lin{number}.model.1.weight"].double().flatten()
        expected += torch.einsum("nchw,c->nhw", (first - second).square(), head).mean((1, 2))
    assert planted.distances(a, b) == pytest.approx(expected.tolist(), rel=1e-4)
    assert expected.min() > 0.01


def test_st_lpips_has_the_weights_of_its_package(shift_tolerant: Perceptual) -> None:
    """The package loads them leniently, so that a missing tensor would go unnoticed."""
    weights_file = importlib.resources.files("stlpips_pytorch") / "weights/vST0.0/alex_shift_tolerant.pth"
    with weights_file.open("rb") as file:
        published = torch.load(file, map_location="cpu", weights_only=True)
    loaded = shift_tolerant.network.state_dict()
    heads = {f"lins.{number}.model.1.weight": published[f"lin{number}.model.1.weight"] for number in range(5)}
    assert loaded.keys() == (published | heads).keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in (published | heads).items())


def test_identical_images_are_at_distance_zero_and_order_does_not_matter(metric: Perceptual) -> None:
    a, b = random_images(3, 2, 3, 28, 28), random_images(4, 2, 3, 28, 28)
    assert metric.distances(a, a) == [0.0, 0.0]
    assert min(metric.distances(a, b)) > 0
    assert metric.distances(a, b) == pytest.approx(metric.distances(b, a), rel=1e-5)


def test_grey_images_count_as_three_equal_channels(metric: Perceptual) -> None:
    a, b = random_images(5, 2, 1, 28, 28), random_images(6, 2, 1, 28, 28)
    coloured = metric.distances(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1))
    assert metric.distances(a, b) == pytest.approx(coloured, rel=1e-5)


def test_an_image_s_distance_does_not_depend_on_its_batch(metric: Perceptual) -> None:
    a, b = random_images(7, 70, 1, 28, 28), random_images(8, 70, 1, 28, 28)
    together = metric.distances(a, b)
    assert metric.distances(a, b) == together
    for i in (0, 31, 32, 69):
        assert metric.distances(a[i : i + 1], b[i : i + 1]) == pytest.approx(together[i : i + 1], rel=1e-4)


def test_a_blurred_image_is_nearer_than_noise(shift_tolerant: Perceptual) -> None:
    """On a drawn scene of stripes and a disc, one pixel of shift weighs less than the loss of the scene."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    scene = ((x // 8 % 2) * 120 + ((x - 32) ** 2 + (y - 32) ** 2 < 300) * 100).to(torch.uint8)[None, None]
    shifted, noise = scene.roll(1, dims=3), random_images(9, 1, 1, 64, 64)
    assert shift_tolerant.distances(scene, shifted)[0] < 0.3 * shift_tolerant.distances(scene, noise)[0]


class TestPreparation:
    def test_stored_values_become_minus_one_to_one(self) -> None:
        image = torch.tensor([0, 255], dtype=torch.uint8).repeat(64 * 32).reshape(1, 1, 64, 64)
        assert prepare(image).shape == (1, 3, 64, 64)
        assert prepare(image).unique().tolist() == [-1.0, 1.0]

    def test_small_images_are_enlarged_bilinearly(self) -> None:
        """Without aligned corners, a doubled row samples at a quarter and three quarters between neighbours."""
        ramp = torch.arange(32, dtype=torch.uint8).repeat(32, 1)[None, None]
        row = (prepare(ramp)[0, 0, 0] + 1) * 127.5
        expected = [0.0] + [i + quarter for i in range(31) for quarter in (0.25, 0.75)] + [31.0]
        assert row.tolist() == pytest.approx(expected, abs=1e-3)

    @pytest.mark.parametrize(
        ("size", "enlarged"),
        [((28, 28), (64, 64)), ((64, 64), (64, 64)), ((100, 70), (100, 70)), ((16, 32), (64, 128))],
    )
    def test_the_aspect_is_kept(self, size: tuple[int, int], enlarged: tuple[int, int]) -> None:
        assert enlarged_size(*size) == enlarged

    def test_large_images_are_taken_as_they_are(self, shift_tolerant: Perceptual) -> None:
        a, b = random_images(10, 2, 3, 70, 100), random_images(11, 2, 3, 70, 100)
        with torch.inference_mode():
            direct = shift_tolerant.network(a.float() / 127.5 - 1, b.float() / 127.5 - 1).flatten()
        assert shift_tolerant.distances(a, b) == pytest.approx(direct.tolist(), rel=1e-4)


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path, planted_weights: dict[str, torch.Tensor]) -> None:
    torch.save(planted_weights, tmp_path / "trunk.pth")
    before = torch.random.get_rng_state()
    load_lpips(tmp_path / "trunk.pth")
    load_st_lpips()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_a_trunk_the_run_goes_on_with_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(TRUNK_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    metric = load_lpips(download=False)
    assert isinstance(metric, Unavailable)
    assert "no AlexNet trunk was named" in metric.reason
    images = random_images(0, 3, 1, 28, 28)
    assert metric.distances(images, images) == [None] * 3


def test_a_named_trunk_must_be_good(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    for path in (tmp_path / "bad.pth", tmp_path / "absent.pth"):
        with pytest.raises(DataError, match=str(path)):
            load_lpips(path)


def test_images_that_cannot_be_compared_are_refused(metric: Perceptual) -> None:
    images = random_images(0, 1, 3, 28, 28)
    with pytest.raises(DataError, match="equal shapes"):
        metric.distances(images, images[:, :1])
    with pytest.raises(DataError, match="must be uint8"):
        metric.distances(images.float(), images.float())
    with pytest.raises(DataError, match="these have 2 channels"):
        metric.distances(images[:, :2], images[:, :2])


def example(name: str) -> torch.Tensor:
    return read_image(Path(os.environ["KEYHOLE_DATA_DIR"]) / "lpips-example" / name)[None]


@pytest.mark.real_data
@pytest.mark.skipif(
    "KEYHOLE_DATA_DIR" not in os.environ or TRUNK_VARIABLE not in os.environ,
    reason=f"KEYHOLE_DATA_DIR and {TRUNK_VARIABLE} do not name the example images and the trunk",
)
def test_lpips_of_the_example_images_of_its_repository() -> None:
    metric = load_lpips()
    assert isinstance(metric, Perceptual)
    reference = example("ex_ref.png")
    assert metric.distances(reference, example("ex_p0.png")) == pytest.approx([0.7219], abs=5e-5)
    assert metric.distances(reference, example("ex_p1.png")) == pytest.approx([0.1376], abs=5e-5)


@pytest.mark.real_data
@pytest.mark.skipif("KEYHOLE_DATA_DIR" not in os.environ, reason="KEYHOLE_DATA_DIR names no folder with example images")
def test_st_lpips_of_the_example_images_of_its_repository(shift_tolerant: Perceptual) -> None:
    """The authors' read-me prints 0.7777554988861084 for ex_p0 against ex_ref."""
    found = shift_tolerant.distances(example("ex_p0.png"), example("ex_ref.png"))
    assert found == pytest.approx([0.7777554988861084], abs=1e-5)
