"""What each reader of shared weights recovers: the worst round of every setting, and every round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from leaderboard.lines import Line, Verdict
from leaderboard.ranking import rank_lines
from leaderboard.reproduction.gusain_runs import (
    NETWORK_TITLES,
    NetworkRun,
    Reproduction,
    algorithm_title,
    in_words,
    sentences,
)
from leaderboard.reproduction.gusain_tables import NOT_RUN, absent
from leaderboard.tables import Column, Table, attack_tables, leaderboard_tables
from leaderboard.tables.columns import LEADERBOARD
from leaderboard.tables.contents import victims
from leaderboard.tables.model import Reach

_SHOWN = ("defense", "verdict", "worst", "identification", "psnr", "floor", "control", "gain")
_IN_DATA = ("success", "ssim", "lpips", "st_lpips", "images", "notes")


def worst_round_tables(found: Reproduction) -> list[Table]:
    """One table a network: every algorithm, kind of victim, reader and defense at the round where most comes out."""
    return [_worst_rounds(found, run) for run in found.runs.values()] + list(_not_run(found))


def _worst_rounds(found: Reproduction, run: NetworkRun) -> Table:
    one = run.result
    boards = leaderboard_tables(rank_lines(run.lines), run.trainings)
    boards.sort(key=lambda board: _order(found, board.context))
    return Table(
        title=f"The server's attack, at its best round: {one.title}",
        caption=sentences(
            found.result.label,
            one.setting,
            one.budget,
            one.victims,
            "In brackets, 95% intervals",
            "The oblivious reader is a negative control: it does not know of the encryption, so that its failure shows"
            " nothing",
        ),
        columns=_columns(),
        records=[_place(found, board.context) | record for board in boards for record in board.records],
        context={"table": "attacks", "scale": found.result.scale, "network": one.network},
        notes=[*map(in_words, found.result.readers), *_failures(found, run.lines)],
    )


def _failures(found: Reproduction, lines: Sequence[Line]) -> Iterator[str]:
    """Every reason for which cells have no score, once, with the places and rounds that it is about."""
    about: dict[str, dict[str, list[str]]] = {}
    for line in lines:
        if line.role == "attack" and (line.crashed or line.summary is None):
            reason = f"{line.attack} {Verdict.CRASHED if line.crashed else line.finding} ({line.details})"
            place = ", ".join((*_place(found, vars(line.setting)).values(), line.defense))
            about.setdefault(reason, {}).setdefault(place, []).append(str(line.snapshot))
    for reason, places in about.items():
        yield f"{reason}: " + "; ".join(f"{place}, round {', '.join(rounds)}" for place, rounds in places.items())


def _not_run(found: Reproduction) -> Iterator[Table]:
    for name in absent(found):
        yield Table(
            title=f"The server's attack, at its best round: {NETWORK_TITLES[name]}",
            caption=sentences(found.result.label),
            columns=_columns(),
            records=[{"algorithm": NOT_RUN}],
            context={"table": "attacks", "scale": found.result.scale, "network": name},
        )


def _columns() -> list[Column]:
    named = {column.name: column for column in LEADERBOARD}
    return [
        Column("algorithm", "Algorithm", "", reach=Reach.EVERYWHERE),
        Column("victims", "Victims", "real rounds, or probes: one more update, on one image", reach=Reach.EVERYWHERE),
        Column("reader", "Reader", "who looks at what was shared", reach=Reach.EVERYWHERE),
        *(named[name] for name in _SHOWN),
        *(replace(named[name], reach=Reach.DATA) for name in _IN_DATA),
    ]  # fmt: skip


def _place(found: Reproduction, context: Mapping[str, str]) -> dict[str, Any]:
    """What a leaderboard holds fixed, as columns."""
    return {
        "algorithm": algorithm_title(context["algorithm"]),
        "victims": victims(context["victim_kind"]),
        "reader": found.reader_title(context["position"], context["knowledge"]),
    }


def _order(found: Reproduction, context: Mapping[str, str]) -> tuple[Any, ...]:
    """By algorithm and victims, then readers as the result has them."""
    titles = [reader.title for reader in found.result.readers]
    reader = _place(found, context)["reader"]
    known = titles.index(reader) if reader in titles else len(titles)
    return context["algorithm"], context["victim_kind"], known, reader


def round_tables(found: Reproduction) -> list[Table]:
    """Every attack at every round, whatever became of it: one table a network, algorithm and kind of victim."""
    return [
        replace(
            table,
            title=f"Every round: {run.result.title}, {table.context['algorithm']}, {victims(table.context['victim_kind'])}",
            caption=sentences(found.result.label, run.result.budget, table.caption),
            context={"table": "attacks-by-round", "network": run.result.network, **table.context},
        )
        for run in found.runs.values()
        for table in attack_tables(run.lines)
    ]
