"""What a user types that is no stage: quickstart, demos, eval, probe, compare, export, doctor, checkpoint."""
