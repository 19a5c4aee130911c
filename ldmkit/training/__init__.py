"""The loop that every training stage runs in, and what it needs."""
