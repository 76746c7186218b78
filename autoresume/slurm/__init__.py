"""Floor 4, the Slurm wing: the only place that knows Slurm's variables, words and commands. Imports no torch."""
