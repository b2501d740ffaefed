"""`keyhole recover-image`: the page's own example from end to end, every form of input, and one line for bad ones."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
import runpy
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from PIL import Image
from typer.testing import Result

from attacks.adaptive.grid.mixed import block_entries
from attacks.adaptive.grid.template import ConvolutionTemplate
from benchmark.speed.attacks.keynet_blocks import BlockKey
from federation.datasets import load_dataset
from federation.secret_root import SecretRoot

pytestmark = pytest.mark.usefixtures("surroundings")

Invoke = Callable[..., Result]

PAGE = Path(__file__).parents[2] / "docs" / "keynet-image.md"
SHAPE = ["--shape", "1x28x28", "--outputs", "6", "--kernel", "5", "--padding", "2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the page's first program ran, and its second one."""
    folder = tmp_path_factory.mktemp("made")
    for name, program in zip(("make.py", "compare.py"), programs(), strict=True):
        (folder / name).write_text(program)
    with contextlib.chdir(folder):
        runpy.run_path("make.py")
    return folder


def programs() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def decibels(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], float]:
    """What the page's second program says of a folder."""

    def of(folder: str) -> float:
        monkeypatch.setattr(sys, "argv", ["compare.py", folder])
        capsys.readouterr()
        runpy.run_path(str(made / "compare.py"))
        return float(capsys.readouterr().out.removesuffix(" dB\n"))

    return of


def test_the_pages_example_opens_the_images_and_its_control_does_not(
    made: Path, invoke: Invoke, decibels: Callable[[str], float]
) -> None:
    result = invoke("recover-image", made / "ours-layer.npz", made / "ours-images.npy", *SHAPE)
    assert result.exit_code == 0, result.output
    assert "pixels placed: 784\n" in result.stdout
    assert "offsets: no\n" in result.stdout
    assert "poses left open: 0, 1, 2, 3, 4, 5, 6, 7\n" in result.stdout
    assert result.stdout.endswith("8 images in recovered\n")
    assert decibels("recovered") > 30
    wrong = invoke("recover-image", made / "others-layer.npz", made / "ours-images.npy", *SHAPE, "--out", "control")
    assert wrong.exit_code == 0, wrong.output
    assert decibels("control") < 18


def test_every_form_of_the_same_input_gives_the_same_pictures(made: Path, invoke: Invoke) -> None:
    layer, keyed = scipy.sparse.load_npz(made / "ours-layer.npz"), np.load(made / "ours-images.npy")[:2]
    np.save("dense.npy", layer.toarray() + 1e-18)  # what dense algebra leaves where zeros belong
    np.save("two.npy", keyed.reshape(2, 1, 28, 28))
    Path("folder").mkdir()
    for index, picture in enumerate(keyed.reshape(2, 28, 28)):
        Image.fromarray(picture).save(f"folder/{index:04d}.png")
    ways = {
        "sparse": (made / "ours-layer.npz", "two.npy"),
        "dense": ("dense.npy", "folder"),
        "one": (made / "ours-layer.npz", "folder/0001.png"),
    }
    for name, (first, second) in ways.items():
        result = invoke("recover-image", first, second, *SHAPE, "--out", name, "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["pixels_placed"] == found["pixels"] == 784
        assert found["key_residual"] < 1e-6
        assert 1 <= found["largest_ratio_of_gains"] <= 101
        assert found["offsets"] is False
        assert [Path(each) for each in found["images"]] == sorted(Path(name).glob("*.png"))
    sparse, dense = (
        [np.asarray(Image.open(f"{name}/{index:04d}.png")) for index in range(2)] for name in list(ways)[:2]
    )
    np.testing.assert_array_equal(sparse, dense)
    np.testing.assert_array_equal(sparse[1], np.asarray(Image.open("one/0001.png")))


def test_exact_numbers_open_exactly_in_any_pose_that_is_open(made: Path, invoke: Invoke) -> None:
    """Floating-point ciphertexts are no pictures, and may have their last coordinate."""
    layer = scipy.sparse.load_npz(made / "ours-layer.npz")
    values = np.random.default_rng(0).uniform(size=(1, layer.shape[1] - 1))
    np.save("exact.npy", np.hstack([values, np.ones((1, 1))]))
    for pose in range(2):
        result = invoke("recover-image", made / "ours-layer.npz", "exact.npy", *SHAPE, "--out", pose, "--pose", pose)
        assert result.exit_code == 0, result.output
    first, turned = (np.asarray(Image.open(f"{pose}/0000.png")) for pose in range(2))
    np.testing.assert_array_equal(np.rot90(first), turned)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A first layer whose key mixes pixels within 4x4 tiles, and two digits under that key, as files."""
    folder = tmp_path_factory.mktemp("mixed")
    key = BlockKey.draw(block_entries((1, 28, 28), (4, 4), "tiles"), SecretRoot(bytes(32)).reader())
    template = ConvolutionTemplate.of((1, 28, 28), 6, (5, 5), padding=(2, 2))
    values = np.random.default_rng(0).uniform(-0.2, 0.2, template.layout.value_count)
    scipy.sparse.save_npz(folder / "layer.npz", scipy.sparse.csr_array(template.layout.matrix(values) @ key.inverse))
    np.save(folder / "images.npy", key.encrypted(load_dataset("mnist5k").victims.images[:2].flatten(1).numpy()))
    return folder / "layer.npz", folder / "images.npy"


def test_mixed_blocks_open_where_they_are_named(mixed: tuple[Path, Path], invoke: Invoke) -> None:
    result = invoke("recover-image", *mixed, *SHAPE, "--block", "4")
    assert result.exit_code == 0, result.output
    assert "offsets: yes\n" in result.stdout
    truth = load_dataset("mnist5k").victims.images[0, 0].numpy()
    opened = np.asarray(Image.open("recovered/0000.png"))
    poses = [np.rot90(side, turns) for side in (opened, opened.T) for turns in range(4)]
    assert max(np.corrcoef(pose.ravel(), truth.ravel())[0, 1] for pose in poses) > 0.999
    assert invoke("recover-image", *mixed, *SHAPE, "--block", "4x4", "--negative", "--out", "dark").exit_code == 0
    assert np.abs(np.asarray(Image.open("dark/0000.png"), int) + opened - 255).max() <= 1


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "do not stand where"),
        (["--block", "7"], "do not stand where"),
        (["--block", "4", "--block-order", "lines"], "do not stand where"),
        (["--block", "5"], "do not fill"),
        (["--block", "0"], "do not fill"),
        (["--block", "4x"], "--block 4x: it is written like 5x5"),
        (["--block", "abc"], "--block abc: it is written like 5x5"),
        (["--block-order", "lines"], "--block-order lines needs --block"),
    ],
    ids=" ".join,
)
def test_blocks_that_are_not_the_keys_are_one_line(
    mixed: tuple[Path, Path], invoke: Invoke, one_line: Callable[..., str], options: list[str], part: str
) -> None:
    message = one_line(invoke("recover-image", *mixed, *SHAPE, *options))
    assert part in message, message
    assert not Path("recovered").exists()


class Bomb:
    def __reduce__(self) -> Any:
        return Path("exploded").touch, ()


def pickled_layer() -> None:
    np.save("bad.npy", np.array([[Bomb()]], dtype=object), allow_pickle=True)


def pickle_itself() -> None:
    Path("bad.npy").write_bytes(pickle.dumps(Bomb()))


def pickled_in_an_archive() -> None:
    content = io.BytesIO()
    np.save(content, np.array([Bomb()], dtype=object), allow_pickle=True)
    with zipfile.ZipFile("bad.npz", "w") as archive:
        for name in ("format", "shape", "data", "indices", "indptr"):
            archive.writestr(f"{name}.npy", content.getvalue())


def indices_outside() -> None:
    matrix = scipy.sparse.csr_array(np.ones((5, 785)))
    matrix.indices[3] = 10**6
    scipy.sparse.save_npz("bad.npz", matrix)


def promising_header() -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 785)})
    Path("bad.npy").write_bytes(header.getvalue() + bytes(80))


LAYERS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "missing": (lambda: None, "bad.npz", "does not exist"),
    "pickled": (pickled_layer, "bad.npy", "no array"),
    "pickle": (pickle_itself, "bad.npy", "no array"),
    "pickled in an archive": (pickled_in_an_archive, "bad.npz", "no CSR matrix"),
    "empty": (lambda: Path("bad.npz").touch(), "bad.npz", "no CSR matrix"),
    "no archive": (lambda: np.savez("bad.npz", a=np.ones(3)), "bad.npz", "no CSR matrix"),
    "another format": (
        lambda: scipy.sparse.save_npz("bad.npz", scipy.sparse.coo_array(np.eye(785))),
        "bad.npz",
        "save matrix.tocsr()",
    ),
    "indices outside": (indices_outside, "bad.npz", "no CSR matrix"),
    "a promise": (promising_header, "bad.npy", "no array"),
    "not finite": (lambda: np.save("bad.npy", np.full((4705, 785), np.nan)), "bad.npy", "finite real numbers"),
    "complex": (lambda: np.save("bad.npy", np.eye(785) * 1j), "bad.npy", "finite real numbers"),
    "a vector": (lambda: np.save("bad.npy", np.ones(785)), "bad.npy", "a layer is a matrix"),
    "another name": (lambda: Path("bad.pt").write_bytes(b"x"), "bad.pt", ".npz"),
    "another size": (lambda: np.save("bad.npy", np.ones((4705, 10))), "bad.npy", "785 columns"),
    "another convolution": (lambda: np.save("bad.npy", np.ones((100, 785))), "bad.npy", "(4705, 785)"),
    "no convolution": (lambda: np.save("bad.npy", np.ones((4705, 785))), "bad.npy", "do not stand where"),
}


@pytest.mark.parametrize("case", LAYERS)
def test_a_bad_layer_is_one_line(invoke: Invoke, one_line: Callable[..., str], case: str) -> None:
    write, name, part = LAYERS[case]
    write()
    np.save("images.npy", np.zeros((1, 784)))
    message = one_line(invoke("recover-image", name, "images.npy", *SHAPE))
    assert part in message, message
    assert not Path("exploded").exists()
    assert not Path("recovered").exists()


def two_sizes() -> None:
    Path("bad").mkdir()
    for side in (28, 14):
        Image.fromarray(np.zeros((side, side), np.uint8)).save(f"bad/{side}.png")


IMAGES: dict[str, tuple[Callable[[], Any], str, str]] = {
    "missing": (lambda: None, "bad.npy", "does not exist"),
    "pickled": (pickled_layer, "bad.npy", "no array"),
    "one image without its axis": (lambda: np.save("bad.npy", np.zeros(784)), "bad.npy", "N at least 1"),
    "none": (lambda: np.save("bad.npy", np.zeros((0, 784))), "bad.npy", "N at least 1"),
    "another size": (lambda: np.save("bad.npy", np.zeros((1, 100))), "bad.npy", "[N, 784]"),
    "not finite": (lambda: np.save("bad.npy", np.full((1, 784), np.inf)), "bad.npy", "finite real numbers"),
    "an empty folder": (lambda: Path("bad").mkdir(), "bad", ".png files"),
    "two sizes": (two_sizes, "bad", "several sizes"),
    "no PNG": (lambda: Path("bad.png").write_bytes(b"x"), "bad.png", "cannot be read"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_bad_images_are_one_line(made: Path, invoke: Invoke, one_line: Callable[..., str], case: str) -> None:
    write, name, part = IMAGES[case]
    write()
    message = one_line(invoke("recover-image", made / "ours-layer.npz", name, *SHAPE))
    assert part in message, message
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--shape", "28x28"], "written like 1x28x28"),
        (["--shape", "2x28x28"], "PNG takes 1"),
        (["--shape", "1x28x99999999"], "written like"),
        (["--kernel", "5x5x5"], "written like 5x5"),
        (["--kernel", "-5"], "written like 5x5"),
        (["--padding", "5"], "smaller than the kernel"),
        (["--stride", "0"], "no convolution"),
        (["--kernel", "99", "--padding", "2"], "no convolution"),
        (["--outputs", "1000000"], "785 columns"),
    ],
    ids=" ".join,
)
def test_a_shape_that_is_no_layers_is_one_line(
    made: Path, invoke: Invoke, one_line: Callable[..., str], options: list[str], part: str
) -> None:
    message = one_line(invoke("recover-image", made / "ours-layer.npz", made / "ours-images.npy", *SHAPE, *options))
    assert part in message, message
