"""What docs/results.md names, measured: one command for each figure, `python -m benchmarks.FOLDER.NAME`."""
