"""Speed of the hot paths against a peer, measured in the same run and stated as ratios."""
