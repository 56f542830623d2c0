"""What holds for every test: hypothesis decides alike on every run, and no example is too slow."""

from hypothesis import settings

settings.register_profile("suite", deadline=None, database=None, derandomize=True, print_blob=True)
settings.load_profile("suite")
