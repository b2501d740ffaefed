"""PriDe (Pavlak 2018): the protocol as its paper wrote it, on `phe`'s own numbers; the cloud holds the private key."""
