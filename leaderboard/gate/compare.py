"""A run against a baseline: every comparison, and what follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmark.store import RunTables, read_manifest, read_run
from leaderboard.gate.exact import (
    changed_bytes,
    changed_outcomes,
    compare_manifests,
    missing_rows,
    other_victims,
    shared_cells,
)
from leaderboard.gate.paired import compare_accuracies, compare_attacks, compare_defenses
from leaderboard.gate.result import Comparison, Finding, GateResult, Status
from leaderboard.lines import gather_lines


def check(run: Path | str, baseline: Path | str) -> GateResult:
    """Compare the run in one folder with the baseline in another.

    Raises:
        DataError: the run is missing, or one of the two is malformed. A missing baseline is a result, not an error.
    """
    # The tables of another evaluator version may have other columns, so manifests are compared before tables are read.
    manifest = read_manifest(run)
    if not Path(baseline, "manifest.json").is_file():
        return GateResult((Finding(Status.INCOMPARABLE, f"no baseline in {baseline}: accept one first"),), ())
    differing = compare_manifests(manifest, read_manifest(baseline))
    return GateResult(tuple(differing), ()) if differing else check_tables(read_run(run), read_run(baseline))


def check_tables(run: RunTables, baseline: RunTables) -> GateResult:
    """Compare a run with a baseline, image by image and seed by seed."""
    differing = compare_manifests(run.manifest, baseline.manifest)
    if differing:
        return GateResult(tuple(differing), ())
    after, before = gather_lines(shared_cells(run, baseline)), gather_lines(shared_cells(baseline, run))
    attacks = list(compare_attacks(after, before))
    defenses = list(compare_defenses(after, before))
    accuracies = list(compare_accuracies(run, baseline))
    findings = [
        *missing_rows(run, baseline),
        *changed_outcomes(run, baseline),
        *changed_bytes(run, baseline),
        *other_victims(after, before),
        *_regressions([*attacks, *defenses, *accuracies]),
        *_remarks(attacks, defenses),
    ]
    return GateResult(tuple(findings), (*attacks, *defenses, *accuracies))


def _regressions(comparisons: Sequence[Comparison]) -> Iterator[Finding]:
    for item in comparisons:
        change = item.difference
        if change.resampled == "nothing":
            yield Finding(
                Status.INCOMPARABLE, f"{item.subject}: {item.quantity} rests on too few images to be compared"
            )
        elif item.regressed:
            text = (
                f"{item.subject}: {item.quantity} {item.before:.3g} before, {item.after:.3g} now, difference"
                f" {change.mean:+.3g} [{change.low:+.3g}, {change.high:+.3g}], margin {item.margin:g}"
            )
            yield Finding(Status.REGRESSED, text)


def _remarks(attacks: Sequence[Comparison], defenses: Sequence[Comparison]) -> Iterator[Finding]:
    """An attack that got stronger on undefended cells may be why a defense leaks more: say so."""
    stronger = [item for item in attacks if item.difference.low > item.margin]
    for item in stronger:
        text = f"{item.subject}: {item.quantity} is better than the baseline's by {item.difference.mean:+.3g}"
        yield Finding(Status.PASSED, text)
    if stronger and any(item.regressed for item in defenses):
        text = "attacks got stronger on undefended cells: if that is why defenses leak more, accept the new figures"
        yield Finding(Status.PASSED, text)
