"""How many examples a property is tried with."""

from hypothesis import Phase, settings

LONG = settings.get_current_profile_name() == "long"
"""Whether `--hypothesis-profile=long` was given."""


def examples(*, quick: int, long: int) -> settings:
    """So many of them, as they are drawn: to make a failing one smaller would compile anew."""
    return settings(max_examples=long if LONG else quick, phases=[Phase.generate])
