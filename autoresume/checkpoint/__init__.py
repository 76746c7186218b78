"""What a checkpoint is: written, committed, chosen, verified, kept or pruned. Knows no torch."""
