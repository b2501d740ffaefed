"""Additively homomorphic encryption of weights: keys, packed fixed point and fast arithmetic on top of `phe`."""
