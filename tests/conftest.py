"""Settings of the whole suite: no timing in property tests, the same examples every run, few threads."""

import hypothesis

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")
