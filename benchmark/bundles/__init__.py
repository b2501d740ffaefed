"""Bundles: what an adversary observes of a few victims, as files, so that an attack is tried without any training."""
