"""Figures 4.2 and 4.3, and 4.4 to 4.7: images, keyed images and reconstructions, always the same ones in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from benchmark.store import OF_UPDATES, VictimKind
from benchmark.store.gusain import NetworkName, NetworkResult
from leaderboard.figures.style import Picture, file_name
from leaderboard.lines import Line
from leaderboard.reproduction.gallery import Row, Tile, draw_gallery
from leaderboard.reproduction.gusain_runs import PAPERS_ATTACK, NetworkRun, Pair, Reproduction, in_words, sentences
from leaderboard.reproduction.gusain_tables import NOT_RUN
from leaderboard.tables.contents import victims

MOST = 10
"""Images side by side: the first of those attacked, in the run's order."""
FIGURES: dict[NetworkName, str] = {"lenet": "4.2", "mobilenet": "4.3"}
"""Which figure of the paper shows encrypted inference."""


def encrypted_inference(found: Reproduction) -> Iterator[Picture]:
    """Figures 4.2 (LeNet) and 4.3 (MobileNetV2): one figure a network that has examples."""
    for run in found.runs.values():
        if run.result.examples:
            figure = FIGURES[run.result.network]
            yield Picture(
                kind="reconstructions",
                name=file_name("figure", figure),
                title=f"Figure {figure}: {run.result.title}, plain and keyed images and the class of each",
                caption=sentences(
                    found.result.label,
                    run.result.setting,
                    "Below a plain image: its true class, and the class that the plain network gives",
                    "Below a keyed image: the class that the keyed network gives and, as a control, the one that it gives the"
                    " image keyed under other keys (other)",
                    "Keyed images are stretched to the range of pixels",
                ),
                png=draw_gallery(list(_example_rows(run)), found.directory, margin=2.2),
            )


def _example_rows(run: NetworkRun) -> Iterator[Row]:
    """The keyed images of each kind of keys, below the plain ones, which stand once where they are the same."""
    name = run.class_name
    before: list[Tile] = []
    for keys in dict.fromkeys(one.keys for one in run.result.examples):
        shown = [one for one in run.result.examples if one.keys == keys]
        plain = [Tile(one.original, f"true: {name(one.label)}\nplain: {name(one.plain_class)}") for one in shown]
        if plain != before:
            yield Row("plain", plain)
        before = plain
        classes = [(name(one.encrypted_class), name(one.wrong_key_class)) for one in shown]
        keyed = [f"keyed: {ours}\nother: {other}" for ours, other in classes]
        yield Row(f"keyed:\n{keys}", [Tile(one.shown, word) for one, word in zip(shown, keyed, strict=True)])


def reconstructions(found: Reproduction) -> Iterator[Picture]:
    """Figures 4.4 to 4.7: one figure a network, algorithm and kind of victim, before training and after its last round."""
    for pair in found.pairs:
        run = found.runs.get(pair.network)
        if run is None:
            continue
        for kind in OF_UPDATES:
            rows = list(_rows(found, run, pair, kind))
            if rows:
                yield _picture(found, run.result, pair, kind, rows)


def _picture(found: Reproduction, one: NetworkResult, pair: Pair, kind: VictimKind, rows: Sequence[Row]) -> Picture:
    return Picture(
        kind="reconstructions",
        name=file_name("figures-4-4-to-4-7", pair.network, pair.algorithm, kind),
        title=f"Figures 4.4 to 4.7: {pair.title}, {victims(kind)}",
        caption=sentences(
            found.result.label,
            one.setting,
            one.budget,
            one.victims,
            "Shown are the first and the last attacked round, of each the first images of the first seed in the run's order,"
            f" {MOST} at most, whatever came of them; PSNR below",
            "Rows without a number are not in the paper; the attack is cosine where no other is named",
            f"A negative control, whose noise shows no protection: {in_words(found.plain_reader)}",
        ),
        png=draw_gallery(rows, found.directory, margin=2.6),
    )


def _rows(found: Reproduction, run: NetworkRun, pair: Pair, kind: VictimKind) -> Iterator[Row]:
    """The first and the last round that were attacked; originals stand once where both attack the same."""
    plain = found.by_round(pair.plain, found.plain_reader, kind)
    encrypted = [(reader, found.by_round(pair.encrypted, reader, kind)) for reader in found.result.readers]
    rounds = sorted(set(plain).union(*(lines for _, lines in encrypted)))
    before: list[str] = []
    for number in dict.fromkeys(rounds[:1] + rounds[-1:]):
        lines = [plain.get(number), *(series.get(number) for _, series in encrypted)]
        when = "before training" if number == 0 else f"after round {number}"
        shown = next((images for images in map(_first_images, lines) if len(images)), None)
        if shown is None:
            yield Row(f"from any weights,\n{when}", [Tile("", "no image scored and kept")])
            continue
        originals = [f"{run.result.folder}/{name}" for name in shown["original"]]
        if originals != before:
            yield from _originals(run.result, originals, when if kind == "real-round" else "")
        before = originals
        yield _reconstructed(f"from plain weights (4.5),\n{when}", lines[0], shown, run.result.folder)
        for (reader, _), line in zip(encrypted, lines[1:], strict=True):
            figure = " (4.7)" if reader == found.plain_reader else ""
            attack = "" if line is None or line.attack == PAPERS_ATTACK else f" ({line.attack})"
            name = f"from encrypted weights{figure},\n{reader.title}{attack}, {when}"
            yield _reconstructed(name, line, shown, run.result.folder)


def _originals(one: NetworkResult, names: Sequence[str], when: str) -> Iterator[Row]:
    """The attacked images and, where any of them was keyed, the keyed ones."""
    keyed = {item.original: item for item in one.encrypted_victims if item.original in names}
    yield Row("\n".join(filter(None, ("original (4.4)", when))), [Tile(name, "") for name in names])
    if keyed:
        keys = ", ".join(dict.fromkeys(item.keys for item in keyed.values()))
        tiles = [Tile(keyed[name].shown, "") if name in keyed else Tile("", "not keyed") for name in names]
        yield Row(f"encrypted image (4.6),\n{keys}", tiles)


def _first_images(line: Line | None) -> pd.DataFrame:
    """The images of the first seed, in the run's order, if they were kept."""
    if line is None or line.summary is None:
        return pd.DataFrame()
    images = line.summary.images
    kept = images[(images["seed"] == images["seed"].min()) & (images["original"] != "")]
    return kept.head(MOST)


def _reconstructed(name: str, line: Line | None, shown: pd.DataFrame, folder: str) -> Row:
    """What a line makes of these images; where it has no score, the reason in place of each."""
    if line is None or line.summary is None:
        reason = NOT_RUN if line is None else str(line.finding)
        return Row(name, [Tile("", reason)] * len(shown))
    images = line.summary.images
    found = {(row.victim, row.image): row for row in images.itertuples()}
    tiles = []
    for victim, image in zip(shown["victim"], shown["image"], strict=True):
        row = found.get((victim, image))
        tiles.append(Tile("", NOT_RUN) if row is None else Tile(f"{folder}/{row.reconstruction}", f"{row.psnr:.1f} dB"))
    return Row(name, tiles)
