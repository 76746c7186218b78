"""The only place that knows Slurm's variables, words and commands. Imports no torch."""
