"""Settings that all tests share: the hypothesis profiles, and what a skip means in CI.

`dev` is quick and new each time; `ci` (chosen by CI=true) tries more, always the same, so that
a red build is a change of the code. A failure prints the seed or blob that replays it. As root
in CI every program that a test needs can be installed, so a skipped test there is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "dev", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "ci",
    max_examples=100,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("few", settings.get_profile("ci"), max_examples=10)
"""For measurements that depend on which lines run, not on how many examples do."""
settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A missing program or right is fatal where CI runs as root."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and os.geteuid() == 0:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be missing: {report.longrepr}"
    return report
