"""The models of each column, scored: accuracy, confusion matrix, and time in sequence and in parallel."""

from __future__ import annotations

from collections.abc import Sequence

from benchmark.reproduce.pride.exchange import ROWS, Average, Exchange
from benchmark.reproduce.pride.models import LinearModel, Trained, evaluate
from benchmark.reproduce.pride.parties import CLOUD, Division, Points
from benchmark.reproduce.pride.sound import SoundAverage
from benchmark.store.pride import Column, ModelResult, SliceResult, Times


def alone(trained: Sequence[Trained], baseline: Trained, division: Division) -> list[ModelResult]:
    """The baseline and every party by itself: on their own slices as coded, on all test points in the sound column."""
    own = [division.test, *(party.own_test for party in division.parties)]
    names = ["centralised", *(party.name for party in division.parties)]
    rows = []
    for name, one, points in zip(names, [baseline, *trained], own, strict=True):
        times = Times(train=one.seconds, sequence=one.seconds)
        rows.append(_row(name, "coded", one.model, points, division, times))
        rows.append(_row(name, "sound", one.model, division.test, division, times))
    return rows


def as_coded(exchange: Exchange, column: Column, trained: Sequence[Trained], division: Division) -> list[ModelResult]:
    """The averages as the paper's code makes them: two rows put into the cloud's model, tested on the cloud's slice."""
    points = division.parties[CLOUD].own_test
    cloud = trained[CLOUD]
    start = cloud.seconds + exchange.seconds_encrypt
    bytes_up = len(exchange.uploads[0].half)
    rows = []
    for number, (upload, average) in enumerate(zip(exchange.uploads, exchange.pairs, strict=True), start=1):
        own = trained[number].seconds
        times = Times(
            train=cloud.seconds + own,
            encrypt=exchange.seconds_encrypt,
            aggregate=upload.seconds_half,
            decrypt=average.seconds_decrypt,
            sequence=start + own + upload.seconds_half + average.seconds_decrypt,
            parallel=max(start, own) + upload.seconds_half + average.seconds_decrypt,
        )
        model = _installed(cloud.model, average)
        rows.append(_row(f"cloud + party {number}", column, model, points, division, times, bytes_up))
    others = trained[1:]
    ending = exchange.six.seconds_aggregate + exchange.six.seconds_decrypt
    adding = [upload.seconds_total for upload in exchange.uploads]
    times = Times(
        train=sum(one.seconds for one in trained),
        encrypt=exchange.seconds_encrypt,
        aggregate=sum(adding) + exchange.six.seconds_aggregate,
        decrypt=exchange.six.seconds_decrypt,
        sequence=start + sum(one.seconds for one in others) + sum(adding) + ending,
        parallel=max(max(start, one.seconds) + add for one, add in zip(others, adding, strict=True)) + ending,
    )
    model = _installed(cloud.model, exchange.six)
    return [*rows, _row("six parties", column, model, points, division, times, len(exchange.uploads[0].total))]


def sound(name: str, average: SoundAverage, trained: Sequence[Trained], division: Division) -> ModelResult:
    """An average as FedAvg makes it, tested on all test points; `trained` are the parties in it."""
    ending = average.seconds_aggregate + average.seconds_decrypt
    paths = [one.seconds + encrypt for one, encrypt in zip(trained, average.seconds_encrypt, strict=True)]
    times = Times(
        train=sum(one.seconds for one in trained),
        encrypt=sum(average.seconds_encrypt),
        aggregate=average.seconds_aggregate,
        decrypt=average.seconds_decrypt,
        sequence=sum(paths) + ending,
        parallel=max(paths) + ending,
    )
    return _row(name, "sound", average.model, division.test, division, times, average.bytes_up)


def over_slices(model: LinearModel, division: Division) -> list[SliceResult]:
    """The cloud's model on every whole slice of the test points that is as long as its own: 200 at full size."""
    name, count = division.parties[CLOUD].name, len(division.parties[CLOUD].own_test)
    starts = range(0, len(division.test) - count + 1, count)
    return [
        SliceResult(name, start, count, evaluate(model, division.test.part(start, count)).accuracy) for start in starts
    ]


def _installed(model: LinearModel, average: Average) -> LinearModel:
    return model.with_rows(ROWS, average.values)


def _row(
    name: str,
    column: Column,
    model: LinearModel,
    points: Points,
    division: Division,
    times: Times,
    bytes_up: int | None = None,
) -> ModelResult:
    score = evaluate(model, points)
    return ModelResult(
        model=name,
        column=column,
        accuracy=score.accuracy,
        tested_on=len(points),
        accuracy_on_all=evaluate(model, division.test).accuracy,
        confusion=[int(count) for count in score.confusion.ravel()],
        times=times,
        bytes_up=bytes_up,
        note="",
    )
