"""Many settings and seeds of one configuration: see `experiments.sweep`."""
