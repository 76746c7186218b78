"""What every room may use: values and small tools that know nothing of runs, ranks or Slurm. Imports no torch."""
