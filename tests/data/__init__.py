import pytest

# The checks live outside test files; pytest should rewrite their assertions all the same.
pytest.register_assert_rewrite("data.remote_checks")
