"""The page in a real Chromium: live, honest when it hears nothing, readable by anyone, closed to everything foreign."""

import getpass
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import pytest

from tests.e2e.chromium import BROWSER, Chromium, Tab, browsing
from tests.e2e.conftest import AUTO
from tests.e2e.findings import House
from tests.e2e.harness import Instance, free_port
from tests.waiting import DEADLINE_S, eventually

LIVE = "document.getElementById('live')?.className === 'live'"
LOST = "document.getElementById('live').className === 'lost'"
HIDE = """Object.defineProperty(document, "hidden", {value: true});
document.dispatchEvent(new Event("visibilitychange"))"""
TABS = 8
STREAMS = "spl_sse_subscribers "
NIGHT = """(async () => {{
  const html = document.getElementById("{pair_id}").outerHTML, seen = Number(main.dataset.from.split(".")[1]);
  for (let n = 1; n <= {count}; n += 1) {{
    const made = html.replace("<tbody", "<tbody data-n=" + n);
    take("part", {{ n: seen + n, at: new Date().toISOString(), id: "{pair_id}", html: made }}, true);
    if (n % 100 === 0) await new Promise((go) => setTimeout(go));
  }}
}})()"""
"""So many changes of a pair, as its stream tells them."""
NODES_MORE = 300
HEAP_MORE = 1_000_000
NGINX = """
daemon off; pid {folder}/pid; error_log stderr; user {user};
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{target}; proxy_http_version 1.1;
      proxy_set_header Host $http_host; proxy_set_header Connection "";
    }}
  }}
}}
"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One browser for all tests; each has a context of its own."""
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pair_of(house: House) -> tuple[Instance, Instance, str]:
    """Two daemons with a pair."""
    alice, bob = house("alice", AUTO).start(), house("bob", AUTO).start()
    pair_id = alice.paired(bob.url)
    alice.emit("th_garden", 5)
    return alice, bob, pair_id


Visit = Callable[..., Tab]


@pytest.fixture
def visit(browser: Chromium, pair_of: tuple[Instance, Instance, str]) -> Iterator[Visit]:
    """Return what opens the page in a new tab, by a link, and waits until it is live."""
    tabs: list[Tab] = []

    def opened(base: str = "", *, script: bool = True, **context: object) -> Tab:
        alice = pair_of[0]
        tab = browser.tab(**context)
        tabs.append(tab)
        if not script:
            tab.without_script()
        link = alice.run("ui", "--print").out.strip()
        tab.go(link.replace(alice.url.rstrip("/"), base) if base else link)
        tab.until("location.pathname == '/ui/' && document.readyState == 'complete'")
        if script:
            tab.until(LIVE)
        return tab

    yield opened
    for tab in tabs:
        tab.close()


def streams(alice: Instance) -> int:
    """Return how many event streams the daemon serves."""
    text = alice.api("GET", "/metrics").body.decode()
    return int(next(line for line in text.splitlines() if line.startswith(STREAMS)).removeprefix(STREAMS))


def cell(pair_id: str, title: str) -> str:
    return f"document.querySelector('#{pair_id} td[data-title=\"{title}\"]').innerText"


def test_anyone_can_read_it_at_every_width_in_light_and_dark(
    visit: Visit, pair_of: tuple[Instance, Instance, str]
) -> None:
    """Axe finds nothing, nothing is wider than the window, and the policy was broken by nobody."""
    axe = resources.files("axe_core_python").joinpath("axe.min.js").read_text()
    tab = visit()
    tab.js("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    for width in (360, 800, 1400):
        tab.size(width)
        assert tab.js("document.documentElement.scrollWidth") <= width
    tab.js(axe + "; true")
    assert tab.js("axe.run().then((found) => found.passes.length)") > 10  # it does look
    for width, scheme in ((360, "light"), (1400, "dark"), (1400, "light")):
        tab.size(width)
        tab.colours(scheme)
        found = tab.js(
            "axe.run().then((found) => found.violations.map((each) => each.id + each.nodes[0].html.slice(0, 99)))"
        )
        assert found == [], (width, scheme)
    assert tab.complaints() == []
    tab.js(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned = 1\"><a style=\"top:0\">')"
    )
    eventually(lambda: len(tab.complaints()) >= 2, "the policy stopped script and style that came in as text")
    assert tab.js("window.pwned") is None


def test_it_follows_the_pair_without_being_loaded_again(visit: Visit, pair_of: tuple[Instance, Instance, str]) -> None:
    """A change shows in each window of the browser; what the reader opened stays open; one stream serves both."""
    alice, _, pair_id = pair_of
    eventually(lambda: streams(alice) == 0, "the tabs of other tests are gone")
    tab = visit()
    other = visit(browserContextId=tab.context)
    for each in (tab, other):
        each.js(f"window.same = true; document.querySelector('#{pair_id} details').open = true")
    eventually(lambda: streams(alice) == 1, "one stream for two windows")
    alice.run("federation", "pause", pair_id)
    for each in (tab, other):
        each.until(cell(pair_id, "State") + ".startsWith('paused')")
        assert each.js(f"window.same && document.querySelector('#{pair_id} details').open")
    alice.run("federation", "resume", pair_id)
    for each in (tab, other):
        each.until(cell(pair_id, "State") + ".startsWith('active')")
    tab.js(HIDE)
    other.until(LIVE)
    alice.run("federation", "pause", pair_id)
    other.until(cell(pair_id, "State") + ".startsWith('paused')")
    other.js(HIDE)
    eventually(lambda: streams(alice) == 0, "hidden windows have no stream")
    alice.run("federation", "resume", pair_id)


def test_without_script_it_says_the_same(visit: Visit, pair_of: tuple[Instance, Instance, str]) -> None:
    tab = visit(script=False)
    text = tab.text()
    for part in ("alice", "bob", "active", "polling every 5m", "we grant", "as of 20"):
        assert part in text, part


def test_it_says_that_it_hears_nothing_and_comes_back(
    visit: Visit, pair_of: tuple[Instance, Instance, str], tmp_path: Path
) -> None:
    """Behind nginx, which answers 502 while the daemon is down: told at once, live again, and not loaded anew."""
    alice, _, pair_id = pair_of
    port = free_port()
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(folder=tmp_path, user=getpass.getuser(), port=port, target=alice.port))
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    with subprocess.Popen([nginx, "-c", str(config), "-e", "stderr"], stderr=subprocess.DEVNULL) as process:
        try:
            tab = visit(f"http://127.0.0.1:{port}")
            tab.js("window.same = true")
            alice.stop()
            tab.until(LOST)
            assert "disconnected" in tab.text()
            eventually(lambda: any("502" in text for text in tab.complaints()), "nginx has answered 502")
            assert tab.js(LOST)
            alice.start()
            tab.until(LIVE)
            assert tab.js("window.same")
            tab.until(cell(pair_id, "State") + ".startsWith('active')")
        finally:
            process.terminate()
            process.wait(DEADLINE_S)


def test_a_page_that_is_left_open_grows_by_nothing(visit: Visit, pair_of: tuple[Instance, Instance, str]) -> None:
    """After thousands of changes it holds the nodes, documents and memory that it held after some."""
    tab, pair_id = visit(), pair_of[2]
    tab.ask("Performance.enable")

    def held() -> dict[str, float]:
        tab.ask("HeapProfiler.collectGarbage")
        return {each["name"]: each["value"] for each in tab.ask("Performance.getMetrics")["metrics"]}

    tab.js(NIGHT.format(pair_id=pair_id, count=500))
    first = held()
    tab.js(NIGHT.format(pair_id=pair_id, count=3000))

    def is_level() -> bool:
        now = held()
        return (
            now["Nodes"] - first["Nodes"] < NODES_MORE
            and now["Documents"] <= first["Documents"]
            and now["JSHeapUsedSize"] - first["JSHeapUsedSize"] < HEAP_MORE
        )

    eventually(is_level, "nothing is left of what was shown before")
    assert tab.js(f"document.getElementById('{pair_id}').dataset.n") == "3000"


def test_it_ends_with_its_session(visit: Visit, pair_of: tuple[Instance, Instance, str]) -> None:
    alice, _, _ = pair_of
    tab = visit()
    alice.run("ui", "--end")
    tab.until("document.getElementById('live').innerText.includes('this session has ended')")
    tab.ask("Page.reload")
    tab.until("document.body.innerText.includes('This page needs a link')")
    assert "spl ui" in tab.text()


def test_many_open_pages_hold_up_no_stop(visit: Visit, pair_of: tuple[Instance, Instance, str]) -> None:
    """A browser loads and feeds them all at once.  The last test of this file: the daemon is not needed after it."""
    alice, _, _ = pair_of
    tabs = [visit()]
    tabs += [visit(browserContextId=tabs[0].context) for _ in range(TABS - 1)]
    eventually(lambda: streams(alice) == 1, "one stream for all of them")
    assert alice.stop() == 0
    for tab in tabs:
        tab.until(LOST)
