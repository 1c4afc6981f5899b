"""How hard property tests try: a little in `make test`, ten times as hard in `make test-all`."""

from hypothesis import settings

settings.register_profile("quick", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=250)
settings.load_profile("quick")
