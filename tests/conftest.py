"""Which event loop the tests run on, and which of them depend on it.

SPL_TEST_LOOP=uvloop|asyncio picks the loop of coroutine tests here and of the daemons that tests start; by default
uvloop where it is installed.  Tests that depend on the loop carry the mark `loop`; a second run takes only them.
A test that awaits is a coroutine, run by pytest-asyncio; only a Hypothesis test that needs a loop for each example, and
a fixture that outlives the loops of its tests, call `asyncio.run`.
SPL_TEST_QUICK=1 draws ten examples for each property instead of a hundred.  With CI set the same are drawn each time,
so that a change is judged by what it changes; what it has not met yet is looked for by everybody else's runs.
"""

import asyncio
import importlib.util
import inspect
import os
from collections.abc import Generator
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

LOOP: Final = os.environ.get("SPL_TEST_LOOP") or ("uvloop" if importlib.util.find_spec("uvloop") else "asyncio")
LOOP_FOLDERS: Final = (
    "tests/net/",
    *(f"tests/e2e/test_{name}.py" for name in ("page", "client", "stream", "kill", "tls")),
)
"""Where the code under test runs on a loop; of the end-to-end tests those whose ways differ between the two loops."""
WAITING_FOLDERS: Final = ("tests/e2e/", "tests/attack/", "tests/engine/")
WAITING_PART: Final = 0.75
"""By this part of a run the last file that waits has begun."""
MISSING: Final = "is not installed"
"""What each reason says that skips a test for lack of a tool."""
LONGEST: Final = ("tests/e2e/test_fault_table.py", "tests/sim/test_seeds.py", "tests/e2e/test_findings.py")


settings.register_profile(
    "spl", deadline=None, print_blob=True, max_examples=100, derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.register_profile("quick", settings.get_profile("spl"), max_examples=10)
settings.load_profile("quick" if os.environ.get("SPL_TEST_QUICK") else "spl")

if LOOP == "uvloop":
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


def pytest_report_header() -> str:
    """Name the loop, so that a log shows which of the two runs it is."""
    return f"event loop: {LOOP}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail, where CI=true, a test that would be skipped because a tool is not installed."""
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and MISSING in str(report.longrepr):
        report.outcome, report.longrepr = "failed", str(report.longrepr)
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark coroutine tests, and those of the folders whose code runs on a loop; spread the tests that wait."""
    if not os.environ.get("SPL_TEST_QUICK"):
        _spread(items)
    for item in items:
        node = item.nodeid.replace(os.sep, "/")
        function = getattr(item, "function", None)
        if (
            node.startswith(LOOP_FOLDERS)
            or inspect.iscoroutinefunction(function)
            or "asyncio.run(" in _source(function)
        ):
            item.add_marker(pytest.mark.loop)


def _spread(items: list[pytest.Item]) -> None:
    """Put files that mostly wait, for processes and timeouts, between those that compute, and none of them last.

    The longest begin first.  Workers then keep the processors busy from begin to end.
    """
    waiting: dict[str, float] = dict.fromkeys(LONGEST, 0.0)
    computing: dict[str, float] = {}
    for item in items:
        name = item.nodeid.partition("::")[0].replace(os.sep, "/")
        if name not in waiting:
            (waiting if name.startswith(WAITING_FOLDERS) else computing).setdefault(name, 0.0)
    order = {name: WAITING_PART * place / len(waiting) for place, name in enumerate(waiting)}
    order |= {name: place / len(computing) for place, name in enumerate(computing)}
    items.sort(key=lambda item: order[item.nodeid.partition("::")[0].replace(os.sep, "/")])


def _source(function: object) -> str:
    return inspect.getsource(function) if inspect.isfunction(function) else ""
