"""Floor 4, the node wing: the daemon that outlives the ranks. Imports no torch."""
