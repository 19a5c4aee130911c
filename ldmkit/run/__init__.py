"""A run's folder: its parts and what they were made from, checkpoints, seeds, signals."""
