"""Configurations: each file has a `get_config()` that starts from `base.get_config()`."""
