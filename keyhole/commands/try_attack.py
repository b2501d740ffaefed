"""`keyhole try`: an attack on a bundle of observations, scored, in seconds."""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import rich.box
import torch
import typer
from rich.console import Console
from rich.table import Table

from attacks.base import Attack, Reconstruction, build_attack, missing_need, restricted
from benchmark.attack_runs import check_returned
from benchmark.bundles.bundle import Bundle
from benchmark.bundles.files import load_bundle
from benchmark.bundles.lookup import bundle_directory
from benchmark.bundles.referee import ScoredImage, TracedVictim, score, score_traces
from benchmark.bundles.shipped import DEFAULT
from federation.errors import UsageError
from federation.files import write_bytes
from federation.seeds import torch_generator
from federation.threat import PlainModel, SparseLayers
from keyhole.options import DataDirectory, Download, given_options
from keyhole.output import WIDTH_ELSEWHERE, shown
from leaderboard.figures.beside import Pair, draw_beside
from leaderboard.figures.style import file_name
from leaderboard.figures.trace import draw_trace

TRACE_POINTS = 60


@dataclass(frozen=True)
class Tried:
    """What became of an attack on a bundle."""

    bundle: Bundle
    attack: Attack
    found: list[Reconstruction]
    images: list[ScoredImage]
    traces: list[TracedVictim]

    @property
    def title(self) -> str:
        """For pictures."""
        return f"{self.attack.name} on {self.bundle.task}, {self.bundle.defense}"


def try_attack(
    attack: Annotated[str, typer.Argument(help="An attack (see `keyhole list attacks`), or FILE.py:CLASS.")],
    bundle: Annotated[
        str, typer.Option(help="What to try it on: see `keyhole list bundles`, or the folder of a bundle.")
    ] = DEFAULT,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="Gradient evaluations of a restart.  [default: the bundle's]")
    ] = None,
    restarts: Annotated[int | None, typer.Option(min=1, help="Independent starts.  [default: the bundle's]")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the attack; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds the attack's starts.")] = 0,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG",
            help="Where originals beside reconstructions go.  [default: runs/try/ATTACK-BUNDLE.png]",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Also draw the attack's objective and the true PSNR over its evaluations."),
    ] = None,
    data_dir: DataDirectory = None,
    download: Download = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
) -> None:
    """Try an attack on a bundle: what an adversary observes of a few victims, kept as files. No training, no ranking."""
    built = build_attack(attack, given_options(option or ()))
    directory = bundle_directory(bundle)
    loaded, truth = load_bundle(directory, data_dir, download)
    missing = missing_need(built, loaded.history[loaded.victims[0].observation])
    if missing is not None:
        raise UsageError(f"{built.name} cannot work on the bundle {bundle}: {missing}")
    budget = replace(
        loaded.budget,
        evaluations=evaluations or loaded.budget.evaluations,
        restarts=restarts or loaded.budget.restarts,
    )
    if trace is not None:
        budget = replace(budget, trace_every=max(1, budget.evaluations // TRACE_POINTS))
    seen = [restricted(observation, built.needs) for observation in loaded.history]
    generator = torch_generator("try", seed, built.name)
    found = built.reconstruct(seen, loaded.victims, generator=generator, budget=budget)
    try:
        check_returned(found, loaded.victims, seen)
    except ValueError as error:
        raise UsageError(str(error)) from error
    tried = Tried(loaded, built, found, score(loaded, truth, found), score_traces(loaded, truth, found))
    drawn = {"picture": picture or Path("runs") / "try" / f"{file_name(built.name, directory.name)}.png"}
    write_bytes(drawn["picture"], _picture(tried))
    if trace is not None and tried.traces:
        drawn["trace"] = trace
        floor = statistics.fmean(image.floor for image in tried.images)
        write_bytes(trace, draw_trace(tried.traces, tried.title, floor))
    if as_json:
        typer.echo(json.dumps(_as_json(tried, drawn), indent=2))
        return
    _print(tried, drawn)
    if trace is not None and not tried.traces:
        typer.echo(f"No trace was drawn: {built.name} kept none that ends at what it returned.")


def _picture(tried: Tried) -> bytes:
    pairs = [
        Pair(
            _shown(image.truth),
            None if image.guess is None else _shown(image.guess),
            f"{image.psnr:.1f} dB ({image.gain:+.1f})",
        )
        for image in tried.images
    ]
    return draw_beside(pairs, tried.title)


def _shown(image: torch.Tensor) -> Any:
    """uint8 [C, H, W] as [H, W] or [H, W, 3]."""
    return image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()


def _print(tried: Tried, drawn: dict[str, Path]) -> None:
    bundle, images = tried.bundle, tried.images
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else WIDTH_ELSEWHERE, markup=False, highlight=False)
    console.print(f"{bundle.title}: {bundle.task}, {bundle.defense}, as {bundle.adversary} observes it")
    table = Table("Victim", box=rich.box.ROUNDED if terminal else rich.box.MARKDOWN)
    for heading in ("PSNR (dB)", "Floor", "Gain", "Identified", "Objective", "Evaluations", "Seconds"):
        table.add_column(heading, justify="right")
    items = {victim.identifier: item for victim, item in zip(bundle.victims, tried.found, strict=True)}
    for image in images:
        item = items[image.victim]
        several = len(item.images) > 1
        cost = (
            "-" if item.objective is None else f"{item.objective:.4g}",
            str(item.evaluations),
            f"{item.seconds:.2f}",
        )
        table.add_row(
            f"{image.victim} image {image.image}" if several else image.victim,
            *(f"{image.psnr:.1f}", f"{image.floor:.1f}", f"{image.gain:+.1f}", "yes" if image.identified else "no"),
            *(cost if image.image == 0 else ("", "", "")),
        )
    table.add_section()
    mean = _mean(tried)
    table.add_row(
        f"mean of {len(images)}",
        *(f"{mean['psnr']:.1f}", f"{mean['floor']:.1f}", f"{mean['gain']:+.1f}", f"{mean['identified']:.0%}"),
        *("", "", f"{sum(item.seconds for item in tried.found):.2f} in all"),
    )
    console.print(table)
    for words in (*_remarks(tried), *(f"{kind.capitalize()}: {shown(path)}" for kind, path in drawn.items())):
        console.print(words, soft_wrap=True)


def _remarks(tried: Tried) -> list[str]:
    """What else a reader should know: that the attack knows nothing of the defense, notes, findings."""
    view = tried.bundle.history[0].view
    unknown = view.hidden_by - tried.attack.undoes if isinstance(view, PlainModel | SparseLayers) else frozenset()
    words = (
        [f"{tried.attack.name} does not know how to undo {', '.join(sorted(unknown))}: no verdict"] if unknown else []
    )
    for victim, item in zip(tried.bundle.victims, tried.found, strict=True):
        findings = [f"{name} {value:.4g}" for name, value in item.findings.items()]
        said = "; ".join(filter(None, [item.note, ", ".join(findings)]))
        words += [f"{victim.identifier}: {said}"] if said else []
    return words


def _mean(tried: Tried) -> dict[str, float]:
    return {
        column: statistics.fmean(float(getattr(image, column)) for image in tried.images)
        for column in ("psnr", "floor", "gain", "identified")
    }


def _as_json(tried: Tried, drawn: dict[str, Path]) -> dict[str, object]:
    columns = ("victim", "image", "psnr", "floor", "gain", "identified")
    return {
        "attack": tried.attack.name,
        "bundle": tried.bundle.title,
        "images": [{column: getattr(image, column) for column in columns} for image in tried.images],
        "mean": _mean(tried),
        "victims": [
            {
                "victim": victim.identifier,
                "objective": item.objective,
                "evaluations": item.evaluations,
                "seconds": item.seconds,
                "findings": dict(item.findings),
                "note": item.note,
            }
            for victim, item in zip(tried.bundle.victims, tried.found, strict=True)
        ],
        "traces": [vars(trace) for trace in tried.traces],
        **{kind: str(path) for kind, path in drawn.items()},
    }
