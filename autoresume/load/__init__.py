"""From a committed checkpoint into memory: chosen by all ranks together, every byte verified before it is used."""
