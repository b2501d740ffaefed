"""Approximate homomorphic encryption of weights (CKKS) on SEAL, used where its sums are exact."""
