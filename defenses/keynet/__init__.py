"""Key-Net: weights and images keyed by secret monomial matrices (Byrne, DeCann and Bloom 2020)."""
