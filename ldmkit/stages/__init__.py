"""The stages: each reads files of a run and writes files of a run; none imports another."""
