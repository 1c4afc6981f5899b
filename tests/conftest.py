"""How many examples property tests take: a few in `make test`, ten times as many in `make test-all`."""

from hypothesis import settings

settings.register_profile("quick", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("thorough", deadline=None, derandomize=True, max_examples=500)
settings.load_profile("quick")
