"""Bundles: what was written is read again, what is damaged is named in one line, and the shipped ones can be made anew."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from observed import observed
from safetensors.torch import load_file, save_file
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from attacks.base import Reconstruction, TracePoint, build_attack
from benchmark.bundles.bundle import Bundle, BundleTruth, private_split
from benchmark.bundles.files import OBSERVATIONS, RECORD, TRUTH, load_bundle, save_bundle
from benchmark.bundles.lookup import bundle_directory, shipped_titles
from benchmark.bundles.make import Wanted, bundle_from_run
from benchmark.bundles.referee import score, score_traces
from benchmark.bundles.shipped import DEFAULT, FOLDER, SHIPPED, make_shipped
from benchmark.harness import training_plans
from federation.datasets import load_dataset
from federation.errors import DataError, UsageError
from federation.messages import Envelope, Transcript, tensors_to_bytes
from federation.seeds import torch_generator
from federation.threat import Ciphertext, Nothing, Oracle, PlainModel, SparseLayers, View

Loaded = tuple[Bundle, BundleTruth]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_bundle(FOLDER / DEFAULT)


def test_the_shipped_bundles_are_small_and_whole() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 1_700_000
    assert {path.name for path in FOLDER.iterdir()} == set(SHIPPED) == set(shipped_titles())
    for name, (wanted, probe) in SHIPPED.items():
        bundle, truth = load_bundle(bundle_directory(name))
        assert (bundle.task, bundle.defense, bundle.adversary) == (wanted.task, wanted.defense, "server/adaptive")
        assert len(bundle.victims) == len(truth.victims) == probe["count"]
        for victim, true in zip(bundle.victims, truth.victims, strict=True):
            view = bundle.history[victim.observation].view
            assert isinstance(view, PlainModel)
            assert view.hidden_by == ({"keynet"} if "keynet" in name else set())
            assert len(true.images) == victim.image_count == probe.get("batch", 1)
            public = load_dataset("mnist5k").victims
            assert torch.equal(public.images[true.rows], true.images)
            assert torch.equal(public.labels[true.rows], true.labels)


@pytest.mark.parametrize("name", ["lenet-zhu-plain", "lenet-zhu-keynet"])
def test_a_shipped_bundle_is_what_the_code_makes(name: str, tmp_path: Path) -> None:
    make_shipped(name, tmp_path)
    made, shipped = (json.loads((folder / RECORD).read_text()) for folder in (tmp_path, FOLDER / name))
    assert {**made, "observations": 0, "files": 0} == {**shipped, "observations": 0, "files": 0}
    (new, new_truth), (old, old_truth) = load_bundle(tmp_path), load_bundle(FOLDER / name)
    for one, other in zip(new_truth.victims, old_truth.victims, strict=True):
        assert torch.equal(one.images, other.images)
    for seen, known in zip(new.history, old.history, strict=True):
        assert replace(seen, view=None, transcript=None, network=None, auxiliary=None) == replace(  # type: ignore[arg-type]
            known,
            view=None,
            transcript=None,
            network=None,
            auxiliary=None,  # type: ignore[arg-type]
        )
        assert [vars(item) | {"payload": 0} for item in seen.transcript] == [
            vars(item) | {"payload": 0} for item in known.transcript
        ]
        assert isinstance(seen.view, PlainModel)
        assert isinstance(known.view, PlainModel)
        for sender, weights in {"": known.view.before, **known.view.after}.items():
            made_now = seen.view.after[sender] if sender else seen.view.before
            for tensor_name, tensor in weights.items():  # another machine's arithmetic differs in the last bits
                torch.testing.assert_close(made_now[tensor_name], tensor, rtol=1e-5, atol=1e-6)


def test_a_name_that_is_no_bundle_is_answered_with_near_ones() -> None:
    with pytest.raises(UsageError, match="did you mean lenet-zhu-plain"):
        bundle_directory("lenet-zhu-plan")
    with pytest.raises(UsageError, match="no bundle is called 'x'"):
        make_shipped("x", Path("never"))


def test_nothing_that_an_attack_is_handed_leads_to_the_truth(loaded: Loaded) -> None:
    bundle, truth = loaded
    hidden = {true.images.numpy().tobytes() for true in truth.victims}
    hidden |= {(true.images.float() / 255).numpy().tobytes() for true in truth.victims}
    reached, waiting = {id(bundle)}, [bundle, *bundle.history, *bundle.victims]
    tensors: list[Tensor] = []
    while waiting:
        thing: Any = waiting.pop()
        for found in gc.get_referents(thing):
            if isinstance(found, Tensor):
                tensors.append(found)
            elif id(found) not in reached and not isinstance(found, type | type(gc) | Callable):  # type: ignore[arg-type]
                reached.add(id(found))
                waiting.append(found)
    assert len({id(tensor) for tensor in tensors}) > 20
    assert not any(tensor.numpy().tobytes() in hidden for tensor in tensors)


# every kind of view, key state, oracle and payload comes back as it was


def views(shape: tuple[int, int]) -> dict[str, View]:
    matrix = scipy.sparse.csr_array(np.arange(6.0, dtype=np.float32).reshape(shape))
    return {
        "sparse": SparseLayers({"conv1": matrix}, {"client-0": {"conv1": 2 * matrix}}, frozenset({"keynet-toeplitz"})),
        "ciphertext": Ciphertext("paillier", 12),
        "nothing": Nothing("reads nothing"),
    }


@pytest.mark.parametrize("kind", views((2, 3)))
def test_what_was_saved_is_read_again(kind: str, loaded: Loaded, tmp_path: Path) -> None:
    bundle, truth = loaded
    dataset, view = load_dataset("mnist5k"), views((2, 3))[kind]
    sent = [
        Envelope(0, "upload", "client-0", "server", tensors_to_bytes({"b": torch.ones(2), "a": torch.zeros(0, 3)})),
        Envelope(0, "keys", "key-agent", "client-0", b"\x00not tensors"),
        Envelope(0, "empty", "server", "client-0", b""),
    ]
    observation = replace(
        bundle.history[0],
        view=view,
        transcript=Transcript(sent),
        held={"client-1": b"a key"},
        scheme={"keynet": {"gain_range": 2.0, "rotation": None, "outputs": "permutation", "per_client": False}},
        oracles={Oracle.LABELS: torch.tensor([3])},
        own_updates={"client-1": {"w": torch.rand(3)}},
        auxiliary=None,
    )
    jittered = replace(truth.private, images=truth.private.images.flip(-1))
    mirrored = tuple(replace(true, images=true.images.flip(-1)) for true in truth.victims[:1])
    written = replace(bundle, history=(observation,), victims=bundle.victims[:1])
    save_bundle(tmp_path, written, BundleTruth(mirrored, jittered, truth.public), dataset, "victims")
    again, its_truth = load_bundle(tmp_path)
    (seen,) = again.history
    assert tuple(seen.transcript) == tuple(sent)
    for name in ("held", "scheme", "facts", "mean", "deviation", "auxiliary", "round"):
        assert getattr(seen, name) == getattr(observation, name)
    assert torch.equal(seen.oracles[Oracle.LABELS], torch.tensor([3]))
    assert torch.equal(seen.own_updates["client-1"]["w"], observation.own_updates["client-1"]["w"])
    if isinstance(view, SparseLayers):
        assert isinstance(seen.view, SparseLayers)
        assert (seen.view.after["client-0"]["conv1"] != view.after["client-0"]["conv1"]).nnz == 0
        assert seen.view.hidden_by == view.hidden_by
    else:
        assert seen.view == view
    assert torch.equal(its_truth.private.images, jittered.images)
    assert torch.equal(its_truth.victims[0].images, mirrored[0].images)


# what is wrong is named


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / RECORD).read_text())
    change(content)
    (folder / RECORD).write_text(json.dumps(content))


def without_the_truth_of_the_first(folder: Path) -> None:
    tensors = load_file(folder / TRUTH)
    del tensors["0.images"]
    save_file(tensors, folder / TRUTH)
    digest = hashlib.sha256((folder / TRUTH).read_bytes()).hexdigest()
    edited(folder, lambda content: content["files"].update({TRUTH: digest}))


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no record": (lambda folder: (folder / RECORD).unlink(), "not a bundle"),
    "not JSON": (lambda folder: (folder / RECORD).write_text("{"), "Invalid JSON"),
    "another format": (lambda folder: edited(folder, lambda c: c.update(format=2)), "this Keyhole reads format 1"),
    "unknown key": (lambda folder: edited(folder, lambda c: c.update(colour=1)), "colour: Extra inputs"),
    "other data": (lambda folder: edited(folder, lambda c: c.update(dataset="0")), "made with other data"),
    "cut": (
        lambda folder: (folder / OBSERVATIONS).write_bytes((folder / OBSERVATIONS).read_bytes()[:-1]),
        "observations.safetensors is not the file that bundle.json was written with",
    ),
    "no truth": (lambda folder: (folder / TRUTH).unlink(), "truth.safetensors cannot be read"),
    "a victim's truth is missing": (without_the_truth_of_the_first, "lacks the truth of seed0/probe-0-0"),
    "a tensor that is not there": (
        lambda folder: edited(folder, lambda c: c["observations"][0]["view"]["before"].update({"fc.bias": "none"})),
        "a tensor 'none' that it does not hold",
    ),
    "not the network's": (
        lambda folder: edited(folder, lambda c: c["observations"][0]["view"]["before"].pop("fc.bias")),
        "do not fit the agreed layout",
    ),
    "a victim nowhere": (
        lambda folder: edited(folder, lambda c: c["victims"][0].update(observation=9)),
        "seed0/probe-0-0 is in observation 9 of 4",
    ),
    "another size": (
        lambda folder: edited(folder, lambda c: c.update(image_shape=[1, 14, 14])),
        "are not those of mnist5k-lenet-zhu",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_damaged_bundle_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    spoil, message = SPOILT[case]
    folder = tmp_path / "bundle"
    shutil.copytree(FOLDER / DEFAULT, folder)
    spoil(folder)
    with pytest.raises(DataError, match=message) as error:
        load_bundle(folder)
    assert "\n" not in str(error.value)


# the referee


def test_the_referee_scores_what_was_returned(loaded: Loaded) -> None:
    bundle, truth = loaded
    found = [Reconstruction(true.images.float() / 255, true.labels, 0.0, 1, 0.0) for true in truth.victims]
    dark = torch.zeros_like(found[0].images)
    found[1] = replace(found[1], images=dark, labels=None)
    rows = score(bundle, truth, found)
    assert [row.psnr for row in rows] == [60, pytest.approx(_psnr(truth.victims[1].images, dark)), 60, 60]
    assert [row.identified for row in rows] == [True, False, True, True]
    assert all(8 < row.floor < 20 for row in rows)
    assert rows[0].gain == 60 - rows[0].floor


def test_batches_are_matched_one_to_one() -> None:
    bundle, truth = load_bundle(FOLDER / "lenet-zhu-batch4")
    found = [Reconstruction(true.images.flip(0).float() / 255, None, 0.0, 1, 0.0) for true in truth.victims]
    assert [row.psnr for row in score(bundle, truth, found)] == [60.0] * 8
    points = (TracePoint(1, 2.0, torch.zeros(4, 1, 28, 28)), TracePoint(2, 1.0, found[0].images))
    (trace,) = score_traces(bundle, truth, [replace(found[0], trace=points), found[1]])
    assert trace.evaluations == (1, 2)
    assert trace.objective == (2.0, 1.0)
    assert trace.psnr[1] == 60
    assert trace.psnr[0] == pytest.approx(
        np.mean([_psnr(image[None], torch.zeros(1, 1, 28, 28)) for image in truth.victims[0].images])
    )


def test_a_trace_in_another_frame_than_the_result_is_left_out(loaded: Loaded) -> None:
    bundle, truth = loaded
    images = torch.rand(1, 1, 28, 28)
    item = Reconstruction(images, None, 0.0, 1, 0.0, trace=(TracePoint(1, 1.0, images.flip(-1)),))
    assert score_traces(bundle, truth, [item] * 4) == []


def _psnr(truth: Tensor, guess: Tensor) -> float:
    return float(peak_signal_noise_ratio(truth.numpy() / 255, guess.double().numpy(), data_range=1))


def test_dlg_reaches_the_stated_figure_on_the_default_bundle(loaded: Loaded) -> None:
    bundle, truth = loaded
    generator = torch_generator("try", 0, "dlg")
    found = build_attack("dlg").reconstruct(bundle.history, bundle.victims, generator=generator, budget=bundle.budget)
    rows = score(bundle, truth, found)
    assert all(row.identified for row in rows)
    assert np.mean([row.psnr for row in rows]) > 50  # docs/writing-an-attack.md


# bundles of one's own runs


WANTED = Wanted("small-digits", "keynet", "collusion/adaptive", regime="probe b1 s1 e1", victims=2)


def test_a_bundle_of_a_run_is_what_its_adversary_observed(tiny_run: Any, tmp_path: Path) -> None:
    run, root = tiny_run.workspace.directory, tiny_run.workspace.root_file
    bundle_from_run(run, WANTED, tmp_path / "mine", root)
    bundle, truth = load_bundle(tmp_path / "mine")
    assert bundle.title == "small-digits under keynet, as collusion/adaptive observes it"
    assert len(bundle.history) == len(bundle.victims) == 2
    (plan,) = (
        plan
        for plan in training_plans(tiny_run.experiment, tiny_run.workspace)
        if plan.defense_spec.name == WANTED.defense
    )
    history = observed(plan, WANTED.adversary, "probe")
    for index, (seen, known) in enumerate(zip(bundle.history, history, strict=False)):
        assert tuple(seen.transcript) == tuple(known.transcript)
        assert dict(seen.held) == dict(known.held)
        assert seen.held.keys() == {"client-1"}
        assert seen.facts == known.facts
        assert isinstance(seen.view, PlainModel)
        assert isinstance(known.view, PlainModel)
        for name, tensor in known.view.after["client-0"].items():
            assert torch.equal(seen.view.after["client-0"][name], tensor)
        assert torch.equal(truth.victims[index].images, history.truth(index).images)
    raw = private_split(tiny_run.workspace.dataset("small-digits"), "victims")
    assert not torch.equal(truth.private.images, raw.images), "clients hold it cropped and jittered"
    assert torch.equal(truth.private.images[truth.victims[0].rows], truth.victims[0].images)


def test_ciphertext_makes_a_bundle_as_well(tiny_run: Any, tmp_path: Path) -> None:
    wanted = Wanted("small-digits", "paillier", regime="real-round")
    bundle_from_run(tiny_run.workspace.directory, wanted, tmp_path, tiny_run.workspace.root_file)
    bundle, truth = load_bundle(tmp_path)
    assert isinstance(bundle.history[0].view, Ciphertext)
    assert len(truth.victims[0].images) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defense": "ckks"}, "has no training of small-digits under ckks, seed 0; it has small-digits under plain"),
        ({"snapshot": 3}, "round 3 is not a snapshot"),
        ({"regime": "probe"}, "'probe' is not one of real-round, probe b1 s1 e1"),
        ({"regime": ""}, "'' is not one of"),
    ],
)
def test_what_a_run_does_not_have_is_named(change: dict[str, Any], message: str, tiny_run: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        bundle_from_run(tiny_run.workspace.directory, replace(WANTED, **change), tmp_path, tiny_run.workspace.root_file)


def test_artefacts_of_other_code_are_not_taken_for_ours(tiny_run: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.workspace.directory, tmp_path / "run", ignore=shutil.ignore_patterns("artefacts"))
    with pytest.raises(DataError, match="no finished training of small-digits under keynet by the code as it is now"):
        bundle_from_run(tmp_path / "run", WANTED, tmp_path / "bundle", tiny_run.workspace.root_file)
