"""What a user types that is no stage: quickstart, demos, eval, compare, doctor, checkpoint."""
