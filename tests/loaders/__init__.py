import pytest

# The checks live outside test files; their assertions should explain themselves all the same.
pytest.register_assert_rewrite("loaders.contracts")
