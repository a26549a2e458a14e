"""The tests of core. What they share lies in `tests/parts` and in the fixtures of `conftest.py`."""
