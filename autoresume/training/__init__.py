"""Floor 4, the training wing: the only one that knows torch. State, RNG, data order, layout, snapshots, agreement."""
