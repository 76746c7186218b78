"""What saving, restoring and stopping cost, against the machine's limits and against others who do the same."""
