"""Contenders that need no torch; a process of its own imports them by name."""

import time


def sleeps(turn, seconds):
    """A step takes that long, half of it waiting for data."""
    wait = turn.waiting(time.sleep)
    while True:
        turn()
        wait(seconds / 2)
        time.sleep(seconds / 2)


def reads(turn, batches):
    for _ in turn.waiting_for([None] * batches):
        turn()
    raise ValueError(f"only {batches} batches")
