"""Between a rank and the daemon of its node: shared memory, small messages, signals. No torch."""
