"""How strong and how fast the attacks are, against a peer in the same run: one subject a file."""
