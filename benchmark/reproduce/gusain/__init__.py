"""Gusain (2021), a secure framework for federated learning under Key-Net, computed anew: ours beside what it prints."""
