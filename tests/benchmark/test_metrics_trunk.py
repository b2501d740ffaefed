"""Where the trunk of LPIPS is looked for, and what is refused: real files and a real local server, no network."""

from __future__ import annotations

import hashlib
import http.server
import pickle
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmark.metrics import trunk
from benchmark.metrics.trunk import ALEXNET_CONVOLUTIONS, TRUNK_VARIABLE, TrunkUnavailableError, load_trunk, read_trunk
from federation.errors import DataError


def planted_weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer, kernel in ALEXNET_CONVOLUTIONS.items():
        weights[f"{layer}.weight"] = torch.randn(kernel, generator=generator) * 0.05
        weights[f"{layer}.bias"] = torch.randn(kernel[:1], generator=generator)
    return weights


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trunk") / "planted.pth"
    torch.save(planted_weights(0), path)
    return path


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No variable, an empty torch hub cache and a deaf address; returns where the cached file would lie."""
    monkeypatch.delenv(TRUNK_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(trunk, "HUB_ADDRESS", "http://127.0.0.1:9/alexnet-owt-7be5be79.pth")
    return tmp_path / "torch" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"


class TestReading:
    def test_every_container_gives_the_same_trunk(self, planted: Path, tmp_path: Path) -> None:
        weights = planted_weights(0)
        whole = tmp_path / "whole.pth"
        torch.save({"classifier.6.bias": torch.zeros(1000), **weights}, whole)
        tensors = tmp_path / "tensors.safetensors"
        safetensors.torch.save_file(weights, tensors)
        found = [read_trunk(path) for path in (planted, whole, tensors)]
        digest = hashlib.sha256(b"".join(weights[key].numpy().tobytes() for key in weights)).hexdigest()
        for one in found:
            assert one.sha256 == digest
            assert list(one.weights) == list(weights)
            assert all(torch.equal(one.weights[key], weights[key]) for key in weights)

    def test_another_trunk_has_another_digest(self, planted: Path, tmp_path: Path) -> None:
        torch.save(planted_weights(1), tmp_path / "other.pth")
        assert read_trunk(tmp_path / "other.pth").sha256 != read_trunk(planted).sha256

    @pytest.mark.parametrize(
        ("key", "replacement", "message"),
        [
            ("features.3.weight", None, r"features.3.weight as floats \[192, 64, 5, 5\]; it has no such tensor"),
            ("features.3.bias", torch.zeros(191), r"features.3.bias as floats \[192\]; it has torch.float32 \[191\]"),
            ("features.6.bias", torch.zeros(384, dtype=torch.int64), r"it has torch.int64 \[384\]"),
            ("features.8.bias", torch.full((256,), torch.nan), "features.8.bias that are not finite"),
        ],
    )
    def test_a_wrong_tensor_is_named(
        self, key: str, replacement: torch.Tensor | None, message: str, tmp_path: Path
    ) -> None:
        weights = planted_weights(0)
        if replacement is None:
            del weights[key]
        else:
            weights[key] = replacement
        path = tmp_path / "wrong.pth"
        torch.save(weights, path)
        with pytest.raises(DataError, match=message) as caught:
            read_trunk(path)
        assert str(path) in str(caught.value)

    def test_a_file_that_holds_something_else_is_refused(self, tmp_path: Path) -> None:
        torch.save([torch.zeros(3)], tmp_path / "list.pth")
        with pytest.raises(DataError, match="must be a state dict; it holds a list"):
            read_trunk(tmp_path / "list.pth")

    def test_nothing_in_the_file_is_executed(self, tmp_path: Path) -> None:
        marker = tmp_path / "executed"

        class Payload:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return Path.touch, (marker,)  # type: ignore[return-value]

        path = tmp_path / "payload.pth"
        path.write_bytes(pickle.dumps({"features.0.weight": Payload()}, protocol=2))
        with pytest.raises(DataError, match="cannot be read"):
            read_trunk(path)
        assert not marker.exists()

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(content=st.binary(max_size=200), suffix=st.sampled_from([".pth", ".safetensors"]), cut=st.integers(0, 4000))
    def test_damaged_files_raise_one_clear_error(
        self, planted: Path, tmp_path: Path, content: bytes, suffix: str, cut: int
    ) -> None:
        path = tmp_path / f"damaged{suffix}"
        for damaged in (content, planted.read_bytes()[:cut] + content):
            path.write_bytes(damaged)
            with pytest.raises(DataError) as caught:
                read_trunk(path)
            assert "\n" not in str(caught.value)


class TestSearch:
    def test_a_named_file_wins_over_the_variable_and_the_cache(
        self, planted: Path, bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bare_machine.parent.mkdir(parents=True)
        torch.save(planted_weights(1), bare_machine)
        torch.save(planted_weights(2), tmp_path / "variable.pth")
        assert load_trunk().source == bare_machine
        monkeypatch.setenv(TRUNK_VARIABLE, str(tmp_path / "variable.pth"))
        assert load_trunk().source == tmp_path / "variable.pth"
        assert load_trunk(planted).source == planted

    def test_a_named_file_that_is_missing_is_an_error_of_the_user(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(DataError, match=r"absent\.pth does not exist") as caught:
            load_trunk(tmp_path / "absent.pth")
        assert not isinstance(caught.value, TrunkUnavailableError)
        monkeypatch.setenv(TRUNK_VARIABLE, str(tmp_path))
        with pytest.raises(DataError, match="is not a file") as caught:
            load_trunk()
        assert not isinstance(caught.value, TrunkUnavailableError)

    def test_a_damaged_cache_is_a_reason(self, bare_machine: Path) -> None:
        bare_machine.parent.mkdir(parents=True)
        bare_machine.write_bytes(b"half a file")
        with pytest.raises(TrunkUnavailableError, match="delete it to fetch it again"):
            load_trunk()

    def test_without_leave_to_download_the_missing_cache_is_the_reason(self, bare_machine: Path) -> None:
        with pytest.raises(TrunkUnavailableError, match="no AlexNet trunk was named"):
            load_trunk(download=False)


@pytest.fixture
def web_folder(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address of a local server that offers its files."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class TestDownload:
    def test_a_good_file_is_fetched_once_and_kept(
        self, planted: Path, web_folder: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, address = web_folder
        content = planted.read_bytes()
        name = f"alexnet-owt-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        (folder / name).write_bytes(content)
        monkeypatch.setattr(trunk, "HUB_ADDRESS", f"{address}/{name}")
        first = load_trunk()
        (folder / name).unlink()
        assert load_trunk().sha256 == first.sha256 == read_trunk(planted).sha256
        assert socket.getdefaulttimeout() is None

    def test_a_file_with_another_digest_is_not_kept(
        self, planted: Path, web_folder: tuple[Path, str], bare_machine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, address = web_folder
        (folder / bare_machine.name).write_bytes(planted.read_bytes())
        monkeypatch.setattr(trunk, "HUB_ADDRESS", f"{address}/{bare_machine.name}")
        with pytest.raises(TrunkUnavailableError, match="invalid hash value"):
            load_trunk()
        assert list(bare_machine.parent.iterdir()) == []

    def test_a_missing_page_is_a_reason(self, web_folder: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trunk, "HUB_ADDRESS", f"{web_folder[1]}/alexnet-owt-7be5be79.pth")
        with pytest.raises(TrunkUnavailableError, match="404"):
            load_trunk()

    def test_a_refused_connection_is_a_reason(self) -> None:
        with pytest.raises(TrunkUnavailableError, match=r"could not be downloaded from http://127\.0\.0\.1:9/"):
            load_trunk()

    def test_a_silent_server_does_not_hang_the_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            monkeypatch.setattr(trunk, "HUB_ADDRESS", f"http://127.0.0.1:{port}/alexnet-owt-7be5be79.pth")
            monkeypatch.setattr(trunk, "STALL_SECONDS", 0.2)
            with pytest.raises(TrunkUnavailableError, match="timed out"):
                load_trunk()
        assert socket.getdefaulttimeout() is None
