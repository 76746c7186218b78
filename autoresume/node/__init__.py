"""The daemon of a node: it outlives the ranks, and decides. Imports no torch."""
