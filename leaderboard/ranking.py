"""The verdict on each defense, per adversary, by the worst case over attacks and snapshots, and the ranks.

A defense is as good as the strongest attack leaves it. The worst case is the line with the highest mean identification
rate, then the highest mean gain over the floor; never the best attack image by image, which no attacker could choose.
A line counts only where its attack is seen working on its positive control, or where it leaks (a leak needs no further
proof). That holds for ciphertext as well: the earned shortcut saves running the attack, not showing that it works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from benchmark.store import RunTables
from leaderboard.lines import Line, Setting, Summary, Verdict, defense_order, gather_lines
from leaderboard.statistics import Interval, paired_difference

LEAKAGE = ("identified", "gain")
"""The columns of the image table that ranks go by, the first before the second."""


@dataclass(frozen=True)
class Entry:
    """One defense in one setting. `worst` is its strongest line, None where nothing was scored."""

    setting: Setting
    defense: str
    lines: tuple[Line, ...]
    worst: Line | None
    verdict: Verdict
    notes: tuple[str, ...]
    rank: int | None = None

    @property
    def summary(self) -> Summary | None:
        """Scores of the worst case, None where nothing was scored."""
        return None if self.worst is None else self.worst.summary

    @property
    def scored(self) -> Summary:
        """The same of an entry known to have been scored, as every ranked one is."""
        if self.worst is None:
            raise ValueError(f"{self.defense} was not scored under {self.setting.adversary}")
        return self.worst.scored


@dataclass(frozen=True)
class Ranking:
    """All defenses in one setting, best protection first, those without a rank last."""

    setting: Setting
    entries: tuple[Entry, ...]


def rank_run(tables: RunTables) -> list[Ranking]:
    """The rankings of a run, one a setting, in the order of the settings."""
    return rank_lines(gather_lines(tables))


def rank_lines(lines: Sequence[Line]) -> list[Ranking]:
    """The same from lines already gathered, in their order."""
    attacks = [line for line in lines if line.role == "attack"]
    return [
        rank_setting(setting, list(members)) for setting, members in groupby(attacks, key=lambda line: line.setting)
    ]


def rank_setting(setting: Setting, lines: Sequence[Line]) -> Ranking:
    """Judge and rank the defenses of one setting; `lines` are its attack lines."""
    defenses = sorted({line.defense for line in lines}, key=defense_order)
    entries = [judge(setting, name, [line for line in lines if line.defense == name]) for name in defenses]
    ranked = [entry for entry in entries if _may_rank(entry)]
    unranked = [entry for entry in entries if not _may_rank(entry)]
    return Ranking(setting, (*_with_ranks(ranked), *unranked))


def judge(setting: Setting, defense: str, lines: Sequence[Line]) -> Entry:
    """The verdict on one defense from its attack lines in one setting, still without a rank."""
    scored = [line for line in lines if line.summary is not None]
    telling = [line for line in scored if line.qualified or line.finding is Verdict.LEAKS]
    worst = max(telling or scored, key=lambda line: line.leakage, default=None)
    notes = [
        *_crash_notes(lines),
        *(_unscored_notes(lines) if worst is None else _scored_notes(setting, scored, worst)),
    ]
    return Entry(setting, defense, tuple(lines), worst, _verdict(setting, lines, worst), tuple(notes))


def _verdict(setting: Setting, lines: Sequence[Line], worst: Line | None) -> Verdict:
    if worst is not None and setting.exempt is not None:
        return setting.exempt
    findings = {line.finding for line in lines}
    for finding in (Verdict.LEAKS, Verdict.CRASHED):
        if finding in findings:
            return finding
    if worst is not None:
        return worst.finding
    # An adversary who knows the scheme but has no applicable attack was not withstood, only not tried.
    tried = setting.knowledge == "oblivious" and Verdict.NOT_EVALUATED not in findings
    return Verdict.NOT_APPLICABLE if tried else Verdict.NOT_EVALUATED


def _crash_notes(lines: Sequence[Line]) -> list[str]:
    crashed = [line for line in lines if line.crashed]
    if not crashed:
        return []
    count, total = sum(line.crashed for line in crashed), sum(len(line.cells) for line in lines)
    return [f"{count} of {total} cells crashed, so it has no rank: {crashed[0].details}"]


def _unscored_notes(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line.details for line in lines if line.details and not line.crashed))


def _scored_notes(setting: Setting, scored: Sequence[Line], worst: Line) -> list[str]:
    notes = ["ciphertext: the prior guess is scored, by the earned shortcut"] if worst.by_shortcut else []
    if setting.exempt is not None:
        return notes
    if worst.finding is Verdict.AT_THE_FLOOR and worst.details and not worst.by_shortcut:
        notes.append(f"{worst.attack} says: {worst.details}")
    if worst.finding is not Verdict.LEAKS:
        notes += [f"leaks under {line.name}" for line in scored if line.finding is Verdict.LEAKS]
    for snapshot, regime in dict.fromkeys((line.snapshot, line.regime) for line in scored):
        here = [line for line in scored if (line.snapshot, line.regime) == (snapshot, regime)]
        if not any(line.qualified or line.finding is Verdict.LEAKS for line in here):
            notes.append(f"unqualified at round {snapshot}, {regime}: no attack is seen working there")
    return notes


def _may_rank(entry: Entry) -> bool:
    proven = entry.verdict in (Verdict.LEAKS, Verdict.AT_THE_FLOOR)
    # A crash may hide the strongest attack, so what is left is no basis for a rank.
    return proven and not any(line.crashed for line in entry.lines)


def _with_ranks(entries: Sequence[Entry]) -> list[Entry]:
    """Ranks in rising order of leakage; entries that cannot be told apart share one, and the next counts them (1, 1, 3).

    Each entry is compared with the first of its rank, so that ties do not chain from one end of the table to the other.
    """
    ranked: list[Entry] = []
    first: Entry | None = None
    for position, entry in enumerate(_ordered(entries), start=1):
        if first is None or any(not difference(entry, first, column).contains(0.0) for column in LEAKAGE):
            first = replace(entry, rank=position)
        ranked.append(replace(entry, rank=first.rank))
    return ranked


def _ordered(entries: Sequence[Entry]) -> list[Entry]:
    """By identification; those it does not tell from the lowest of their group by gain."""
    groups: list[list[Entry]] = []
    identification, gain = LEAKAGE
    for entry in sorted(entries, key=lambda entry: entry.scored.mean(identification)):
        if groups and difference(entry, groups[-1][0], identification).contains(0.0):
            groups[-1].append(entry)
        else:
            groups.append([entry])
    return [entry for group in groups for entry in sorted(group, key=lambda entry: entry.scored.mean(gain))]


def difference(first: Entry, second: Entry, column: str) -> Interval:
    """Leakage of `first` less that of `second`, each at its own worst case, in one column of the image table."""
    return paired_difference(first.scored.scores(column), second.scored.scores(column))
