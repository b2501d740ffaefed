"""Gains from the black level: normalisation puts black at -mean/deviation, and most pixels are black now and then."""

from __future__ import annotations

import numpy as np

from attacks.adaptive.statistics.public import Floats, PublicImages

_SAME = 2e-3
"""Values that differ by less, in units of the black level, are one grey level: levels lie 1/255 of a deviation apart."""

_OFTEN = 0.05
"""Share of the images, two at least, in which a pixel has its lowest value if that is black."""

_MOST = 0.9
"""Share of the pixels that have to be black so often among as many public images, for the lowest value to pass for it."""


def gain_bounds(leaks: Floats, public: PublicImages, gain_range: float) -> tuple[Floats, Floats]:
    """[P], [P]: the least and largest gain that each keyed pixel may have.

    Where the lowest value of a pixel comes up often it is black, and the gain known. That holds where black is
    the same value in all channels and not 0, and public images are black often enough.

    Args:
        leaks: [N, P], keyed images.
        public: images like them.
        gain_range: s; gains are known to lie on [1/s, s].
    """
    count, size = leaks.shape
    lower, upper = np.full(size, 1 / gain_range), np.full(size, gain_range)
    black = public.black[0]
    if gain_range == 1 or black >= 0 or np.ptp(public.black) > 1e-6 * -black:
        return lower, upper
    due = max(2, int(_OFTEN * count))
    sample = public.pixels[np.linspace(0, len(public.pixels) - 1, count).astype(int)]
    if np.mean((sample <= black * (1 - _SAME)).sum(0) >= due) < _MOST:
        return lower, upper
    gains = leaks.min(0) / black
    seen = (leaks <= leaks.min(0) + _SAME * np.abs(leaks.min(0))).sum(0)
    sure = (seen >= due) & (gains >= lower * (1 - _SAME)) & (gains <= upper * (1 + _SAME))
    return np.where(sure, gains, lower), np.where(sure, gains, upper)
