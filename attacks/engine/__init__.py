"""Batched gradient matching: every victim and restart of a cell is optimised in one vectorised call.

Shapes throughout: T trials (victims x restarts), m images in each trial's batch, C x H x W pixels, K classes,
D free variables of a trial. A trial never reads another trial's state, so a batched call gives what T single calls give.
"""
