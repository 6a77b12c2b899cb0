"""Experiments: the command-line runner of d2ejax and its configurations."""
