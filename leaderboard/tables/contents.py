"""What stands in each table of a run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from leaderboard.lines import Line, Summary, Verdict, defense_order
from leaderboard.ranking import Entry, Ranking
from leaderboard.tables.columns import ATTACKS, LEADERBOARD, TRAININGS
from leaderboard.tables.model import Column, Reach, Table
from leaderboard.trainings import TrainingSummary

REAL_ROUND, PROBE, KEYED_IMAGE = "messages of real rounds", "probe messages", "images sent to be classified"


def leaderboard_tables(rankings: Sequence[Ranking], trainings: Sequence[TrainingSummary]) -> list[Table]:
    """One table a setting: the defenses in their order, each at its worst case."""
    return [_leaderboard(ranking, trainings) for ranking in rankings]


def _leaderboard(ranking: Ranking, trainings: Sequence[TrainingSummary]) -> Table:
    setting = ranking.setting
    costs = {
        item.defense: item
        for item in trainings
        if (item.task, item.algorithm, item.reference) == (setting.task, setting.algorithm, "")
    }
    summaries = [entry.summary for entry in ranking.entries if entry.summary is not None]
    lines = [line for entry in ranking.entries for line in entry.lines]
    regimes = dict.fromkeys(line.regime for line in lines)
    several = len(regimes) > 1
    caption = ["" if several else f"Victims: {next(iter(regimes))}.", _resampling(summaries), _lpips_reasons(lines)]
    if setting.exempt is not None:
        caption.insert(0, EXEMPT[setting.exempt])
    return Table(
        title=f"{setting.adversary}: {setting.task}, {setting.algorithm}, {victims(setting.victim_kind)}",
        caption=" ".join(filter(None, caption)),
        columns=LEADERBOARD,
        records=[_entry_record(entry, costs.get(entry.defense), regime=several) for entry in ranking.entries],
        context={
            "task": setting.task,
            "algorithm": setting.algorithm,
            "position": setting.position,
            "knowledge": setting.knowledge,
            "oracles": setting.oracles,
            "victim_kind": setting.victim_kind,
        },
        notes=[f"{entry.defense}: {note}" for entry in ranking.entries for note in entry.notes],
    )


EXEMPT = {
    Verdict.NEGATIVE_CONTROL: "A negative control: this attacker does not know of the defense, so no verdict follows.",
    Verdict.ORACLE: "The attacks were given oracles that an adversary does not have, so no verdict follows.",
}


def victims(kind: str) -> str:
    """The kind of victim in words."""
    return {"real-round": REAL_ROUND, "keyed-image": KEYED_IMAGE}.get(kind, PROBE)


def _entry_record(entry: Entry, costs: TrainingSummary | None, *, regime: bool) -> dict[str, Any]:
    worst = entry.worst
    return {
        "rank": entry.rank,
        "defense": entry.defense,
        "verdict": entry.verdict,
        "worst": None if worst is None else worst.name + (f", {worst.regime}" if regime else ""),
        **({} if worst is None else _scores(worst)),
        "accuracy": None if costs is None else costs.accuracy,
        "accuracy_difference": None if costs is None else costs.difference,
        "bytes_up": None if costs is None else costs.mean("bytes_up"),
        "notes": "; ".join(entry.notes),
    }


def _scores(line: Line) -> dict[str, Any]:
    summary = line.summary
    if summary is None:
        return {}
    return {
        "identification": summary.identification,
        "psnr": summary.psnr,
        "floor": summary.floor,
        "control": None if line.control is None else line.control.psnr.mean,
        "gain": summary.gain,
        "success": summary.success_rate,
        "ssim": summary.mean("ssim"),
        "lpips": summary.mean("lpips"),
        "st_lpips": summary.mean("st_lpips"),
        "psnr_median": summary.median("psnr"),
        "images": len(summary.images),
    }


def attack_tables(lines: Sequence[Line]) -> list[Table]:
    """Every line, whatever became of it: one table a task, algorithm and kind of victim; lines in their order."""

    def place(line: Line) -> tuple[str, str, str]:
        return line.setting.task, line.setting.algorithm, line.setting.victim_kind

    tables = []
    for (task, algorithm, kind), members in groupby(lines, key=place):
        kept = list(members)
        summaries = [line.summary for line in kept if line.summary is not None]
        tables.append(
            Table(
                title=f"All attacks: {task}, {algorithm}, {victims(kind)}",
                caption=" ".join(filter(None, [_resampling(summaries), _lpips_reasons(kept)])),
                columns=ATTACKS,
                records=[_line_record(line) for line in kept],
                context={"task": task, "algorithm": algorithm, "victim_kind": kind},
            )
        )
    return tables


def _line_record(line: Line) -> dict[str, Any]:
    outcomes = Counter(line.cells["outcome"])
    return {
        "adversary": line.setting.adversary,
        "defense": line.defense,
        "attack": line.attack,
        "snapshot": line.snapshot,
        "regime": line.regime,
        "role": line.role,
        "verdict": line.verdict,
        "outcomes": ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()),
        **_scores(line),
        "objective": float(line.cells["objective"].mean()),
        "evaluations": float(line.cells["evaluations"].mean()),
        "seconds": float(line.cells["seconds"].mean()),
        "findings": _findings(line),
        "details": line.details,
    }


def _findings(line: Line) -> str:
    """Mean of each finding over the cells that have it."""
    found: dict[str, list[float]] = {}
    for cell in line.cells["findings"]:
        for name, value in json.loads(cell or "{}").items():
            found.setdefault(name, []).append(float(value))
    return ", ".join(f"{name} {np.mean(values):.3g}" for name, values in found.items())


def training_tables(trainings: Sequence[TrainingSummary]) -> list[Table]:
    """Accuracy and cost: one table a task and algorithm."""

    def place(item: TrainingSummary) -> tuple[str, str]:
        return item.task, item.algorithm

    return [_trainings(task, algorithm, list(members)) for (task, algorithm), members in groupby(trainings, key=place)]


def _trainings(task: str, algorithm: str, members: Sequence[TrainingSummary]) -> Table:
    first = members[0]
    seeds = sorted({int(seed) for item in members for seed in item.rows["seed"]})
    beyond = [item for item in members if item.largest("aggregation_error") > item.largest("stated_error")]
    return Table(
        title=f"Accuracy and cost: {task}, {algorithm}",
        caption=f"{first.text('dataset')}: {first.text('provenance')}. Means over {_count(len(seeds), 'seed')}.",
        columns=TRAININGS,
        records=[_training_record(item) for item in members],
        context={"task": task, "algorithm": algorithm},
        notes=[f"{item.name}: the aggregation error exceeds what the defense states" for item in beyond],
    )


def _training_record(item: TrainingSummary) -> dict[str, Any]:
    record: dict[str, Any] = {
        "training": item.name,
        "accuracy": item.accuracy,
        "accuracy_difference": item.difference,
        "seconds_train": item.mean("seconds_train"),
        "peak_memory_bytes": item.largest("peak_memory_bytes"),
    }
    if item.reference:
        # Nothing is sent or protected without federation: these stay empty instead of reading 0.
        return record
    means = ("bytes_up", "bytes_down", "key_bytes", "plain_share")
    steps = ("seconds_keys", "seconds_protect", "seconds_aggregate", "seconds_recover")
    return {
        **record,
        **{name: item.mean(name) for name in (*means, *steps)},
        "protection_share": item.protection_share,
        "aggregation_error": item.largest("aggregation_error"),
        "stated_error": item.largest("stated_error"),
        "key_holders": item.text("key_holders"),
        "collusion_bound": item.text("collusion_bound"),
    }


def glance_tables(rankings: Sequence[Ranking]) -> list[Table]:
    """All verdicts on one sheet: defenses by adversaries, one table a task, algorithm and kind of victim."""

    def place(ranking: Ranking) -> tuple[str, str, str]:
        setting = ranking.setting
        return setting.task, setting.algorithm, setting.victim_kind

    return [_glance(*where, list(members)) for where, members in groupby(rankings, key=place)]


def _glance(task: str, algorithm: str, kind: str, rankings: Sequence[Ranking]) -> Table:
    columns = [Column("defense", "Defense", "", reach=Reach.EVERYWHERE)]
    columns += [Column(item.setting.adversary, item.setting.adversary, "", reach=Reach.EVERYWHERE) for item in rankings]
    records: dict[str, dict[str, Any]] = {}
    for ranking in rankings:
        for entry in ranking.entries:
            record = records.setdefault(entry.defense, {"defense": entry.defense})
            record[ranking.setting.adversary] = entry.verdict
    return Table(
        title=f"{task}, {algorithm}, {victims(kind)}",
        caption="",
        columns=columns,
        records=sorted(records.values(), key=lambda record: defense_order(record["defense"])),
        context={"task": task, "algorithm": algorithm, "victim_kind": kind},
    )


def _resampling(summaries: Iterable[Summary]) -> str:
    """What the intervals of a table rest on."""
    bases = dict.fromkeys(
        f"{item.psnr.resampled} ({_count(item.psnr.images, 'image')}, {_count(item.psnr.seeds, 'seed')})"
        for item in summaries
    )
    return f"In brackets, 95% intervals; resampled: {'; '.join(bases)}." if bases else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _lpips_reasons(lines: Iterable[Line]) -> str:
    reasons = dict.fromkeys(reason for line in lines for reason in line.cells["lpips_reason"] if reason)
    return f"LPIPS is empty: {'; '.join(reasons)}." if reasons else ""
