"""Traces of gradient matching: where the search stood after so many evaluations."""

from __future__ import annotations

from torch import Tensor

from attacks.base import TracePoint
from attacks.engine.matches import Matches


class Recorder:
    """Keeps what `match_gradients` tells of every trial: its first evaluation, and one in so many.

    Args:
        every: evaluations from one point to the next; 0 keeps nothing.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._points: dict[int, list[TracePoint]] = {}

    def __call__(self, evaluations: int, trials: Tensor, objectives: Tensor, images: Tensor) -> None:
        """See `attacks.engine.loop.Trace`."""
        if evaluations != 1 and evaluations % self._every:
            return
        rows = zip(trials.tolist(), objectives.tolist(), images.detach().cpu().clone(), strict=True)
        for trial, objective, there in rows:
            self._points.setdefault(trial, []).append(TracePoint(evaluations, objective, there))

    def trace(self, matches: Matches, first: int, restarts: int) -> tuple[TracePoint, ...]:
        """The trace of one victim's chosen restart, with what it came to as the last point.

        Args:
            matches: of all trials; the chosen one has the lowest objective.
            first: the victim's first trial; its restarts follow each other.
            restarts: how many there are.
        """
        if not self._every:
            return ()
        own = matches.objective[first : first + restarts]
        chosen = first + int(own.nan_to_num(nan=float("inf")).argmin())
        spent = int(matches.evaluations[chosen])
        points = [point for point in self._points.get(chosen, []) if point.evaluations < spent]
        end = TracePoint(spent, float(matches.objective[chosen]), matches.images[chosen].cpu())
        return (*points, end)
