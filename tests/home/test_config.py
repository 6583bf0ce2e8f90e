"""Configuration: precedence, sources, and errors that name the line."""

import dataclasses

import pytest

from spl.core.limits import Limits
from spl.home import config
from spl.home.config import KEYS, RESTART, Config, ConfigError, Settings, load, with_setting
from spl.home.home import CONFIG_TEXT


def test_defaults_are_safe() -> None:
    found = config.load("", {}, {})
    assert found == Config(sources={})
    assert found.auth_required
    assert found.federation_approval == "manual"
    assert found.host == "127.0.0.1"


def test_flag_wins_over_environment_over_file() -> None:
    text = 'port = 1\n[federation]\napproval = "auto"\n'
    assert config.load(text, {}, {}).port == 1
    assert config.load(text, {"SPL_PORT": "2"}, {}).port == 2
    found = config.load(text, {"SPL_PORT": "2"}, {"port": 3})
    assert found.port == 3
    assert found.federation_approval == "auto"
    rows = {row["key"]: row for row in found.rows()}
    assert rows["port"] == {"key": "port", "value": 3, "source": "flag"}
    assert rows["federation.approval"]["source"] == "config.toml:3"
    assert rows["host"]["source"] == "default"


@pytest.mark.parametrize(("text", "found"), [("true", True), ("false", False), ("private", "private")])
def test_plain_http_is_for_all_for_none_or_for_private_addresses(text: str, found: object) -> None:
    assert load("", {"SPL_FEDERATION_ALLOW_HTTP": text}, {}).federation_allow_http == found


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("port = 1\nprot = 2\n", 2, "prot"),
        ('[federation]\n\napproval = "maybe"\n', 3, "manual, auto, closed"),
        ("[auth]\nrequired = 1\n", 2, "true or false"),
        ('[federation]\nallow_http = "all"\n', 2, "private"),
        ('port = "80"\n', 1, "port number"),
        ("port = 70000\n", 1, "port number"),
        ('public_url = "ftp://x"\n', 1, "http"),
        ('public_url = "https://x/y"\n', 1, "without a path"),
        ('port = 9100\nlimits.body_bytes = "x"\n', 2, "body_bytes"),
        ('[limits]\nbody_bytes = "x"\n', 2, "body_bytes"),
        ('public_url = "https://x.:9100"\n', 1, "without a final dot"),
        ('[federation]\npoll_interval = "1"\n', 2, "poll_interval"),
        ("[limits]\nrecord_bytes = 99999999\n", 2, "at most"),
        ("[limits]\npage_records = 0.5\n", 2, "above 0"),
        ("[limits]\nnonsense = 1\n", 2, "nonsense"),
        ("[http]\nallowed_hosts = [1]\n", 2, "text"),
        ('[http]\ntrusted_proxies = ["10.0.0.1/8"]\n', 2, "networks"),
        ("# \u0085 \u2028\nprot = 2\n", 2, "prot"),
        ("\ufeffport = 1\nprot = 2\n", 2, "prot"),
        ('[http]\nallowed_origins = ["*"]\n', 2, "origins"),
        ('[http]\nallowed_origins = ["https://a.example/"]\n', 2, "origins"),
    ],
)
def test_a_bad_value_is_refused_with_its_line(text: str, line: int, word: str) -> None:
    if "poll_interval" in text:
        text = text.replace('"1"', '"250ms"')
    with pytest.raises(ConfigError) as caught:
        config.load(text, {}, {})
    assert caught.value.code == "config-invalid"
    assert caught.value.exit_code == 78
    assert f"config.toml:{line}:" in caught.value.message
    assert word in caught.value.message


def test_text_that_is_no_toml_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigError, match="line 2"):
        config.load("port = 1\n= 3\n", {}, {})


def test_environment_values_are_checked_and_typed() -> None:
    env = {
        "SPL_AUTH_REQUIRED": "false",
        "SPL_HTTP_ALLOWED_HOSTS": "a.example,b.example",
        "SPL_FEDERATION_POLL_INTERVAL": "30s",
    }
    found = config.load("", env, {})
    assert not found.auth_required
    assert found.http_allowed_hosts == ("a.example", "b.example")
    assert found.federation_poll_interval_ms == 30_000
    with pytest.raises(ConfigError, match="SPL_PORT"):
        config.load("", {"SPL_PORT": "+80"}, {})


def test_limits_go_down_only() -> None:
    assert config.load("[limits]\nrecord_bytes = 1000\n", {}, {}).limits.record_bytes == 1000


def test_the_bytes_of_a_day_may_be_raised_for_a_larger_disk() -> None:
    large = 2 * Limits().intake_day_bytes
    assert config.load(f"[limits]\nintake_day_bytes = {large}\n", {}, {}).limits.intake_day_bytes == large
    with pytest.raises(ConfigError, match="at most"):
        config.load(f"[limits]\nintake_day_bytes = {2**61}\n", {}, {})


def test_the_file_that_init_writes_holds_nothing_but_defaults_and_known_keys() -> None:
    assert config.load(CONFIG_TEXT, {}, {}) == Config(sources={})
    shown = "\n".join(
        line[2:] for line in CONFIG_TEXT.splitlines() if line.startswith("# ") and ("=" in line or "[" in line)
    )
    assert dataclasses.asdict(config.load(shown, {}, {}))["port"] == 9100


def test_a_newer_configuration_counts_at_once_but_for_what_a_start_builds_on() -> None:
    """What waits for a restart keeps its value and its source, and is named."""
    settings = Settings(load("port = 9200\n[limits]\nfetch_ids = 500\n", {}, {}))
    newer = load('port = 9300\nhost = "::1"\n[federation]\napproval = "closed"\n[log]\nlevel = "debug"\n', {}, {})
    assert settings.take(newer) == (["federation.approval", "log.level"], ["host", "port", "limits"])
    now = settings.now
    assert (now.port, now.host, now.federation_approval, now.limits.fetch_ids) == (9200, "127.0.0.1", "closed", 500)
    sources = {row["key"]: row["source"] for row in now.rows()}
    assert (sources["port"], sources["federation.approval"]) == ("config.toml:1", "config.toml:4")
    assert settings.take(now) == ([], [])


def test_what_a_start_builds_on_are_keys() -> None:
    assert set(RESTART) <= KEYS.keys()


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.168.1.5", "alice.example", "::ffff:0.0.0.0", "0"])
def test_without_credentials_no_daemon_serves_beyond_this_machine(host: str) -> None:
    found = config.load("[auth]\nrequired = false\n", {}, {"host": host})
    with pytest.raises(ConfigError, match=r"config.toml:2: .*auth.required"):
        config.check_open(found)
    with pytest.raises(ConfigError, match="insecure-localhost"):
        config.check_open(config.load("", {}, {"host": host}), insecure=True)
    config.check_open(config.load("", {}, {"host": host}))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_on_loopback_credentials_may_be_off(host: str) -> None:
    found = config.load("[auth]\nrequired = false\n", {}, {"host": host})
    config.check_open(found, insecure=True)
    with pytest.raises(ConfigError):
        config.check_open(dataclasses.replace(found, tls_listen="0.0.0.0:9443"))


def test_a_reload_opens_no_daemon_that_others_reach() -> None:
    """Also where the same file moves it to loopback, which takes a restart."""
    settings = Settings(Config(host="0.0.0.0"))
    with pytest.raises(ConfigError):
        settings.take(Config(host="127.0.0.1", auth_required=False))
    assert settings.now.auth_required


OWN = '# mine\nport = 9100  # seldom\n\n[federation]\n# by hand\npoll_interval = "5m"\n\n[http]\nallowed_hosts = []\n'


@pytest.mark.parametrize(
    ("key", "said", "was", "becomes"),
    [
        ("port", "9300", "port = 9100  # seldom\n", "port = 9300\n"),
        ("federation.poll_interval", "30s", 'poll_interval = "5m"\n', 'poll_interval = "30s"\n'),
        ("federation.approval", "auto", "[federation]\n", '[federation]\napproval = "auto"\n'),
        ("http.allowed_hosts", "a.example,b", "allowed_hosts = []\n", 'allowed_hosts = ["a.example", "b"]\n'),
        ("public_url", "https://a.example", "# seldom\n", '# seldom\npublic_url = "https://a.example"\n'),
        ("auth.required", "true", OWN, OWN + "\n[auth]\nrequired = true\n"),
        ("limits.body_bytes", "1000", OWN, OWN + "\n[limits]\nbody_bytes = 1000\n"),
    ],
)
def test_one_key_is_set_and_nothing_else_changes(key: str, said: str, was: str, becomes: str) -> None:
    """Where it stands, else in its table, else in a new one; comments and the order stay."""
    assert OWN.count(was) == 1
    changed = with_setting(OWN, key, said)
    assert changed == OWN.replace(was, becomes)
    assert with_setting(changed, key, said) == changed


def test_keys_are_set_in_an_empty_file_and_in_that_of_init() -> None:
    assert with_setting("", "port", "9300") == "port = 9300\n"
    text = with_setting(with_setting(CONFIG_TEXT, "federation.approval", "auto"), "host", "127.0.0.2")
    found = load(text, {}, {})
    assert (found.federation_approval, found.host) == ("auto", "127.0.0.2")
    assert text.startswith(CONFIG_TEXT)


@pytest.mark.parametrize(
    ("text", "key", "said", "word"),
    [
        (OWN, "prot", "1", "no key 'prot'"),
        (OWN, "port", "x", "port number"),
        (OWN, "auth.required", "maybe", "true or false"),
        (OWN, "federation.poll_interval", "250ms", "at least 1s"),
        (OWN, "limits.body_bytes", "x", "limits.body_bytes: body_bytes is a number"),
        (OWN, "limits.nonsense", "1", "unknown limit"),
        ('host = "0.0.0.0"\n', "auth.required", "false", "administrator"),
        ('federation = {approval = "auto"}\n', "federation.approval", "closed", "config.toml"),
        ('[http]\nallowed_hosts = [\n "a",\n]\n', "http.allowed_hosts", "b", "config.toml"),
        ("prot = 2\n", "port", "9300", "config.toml"),
    ],
)
def test_what_the_daemon_would_refuse_is_not_set(text: str, key: str, said: str, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_setting(text, key, said)
    assert word in caught.value.message


def test_limits_that_the_file_sets_are_shown() -> None:
    """Those at their defaults are many, and stand in the code."""
    rows = {row["key"]: row for row in load("[limits]\nbody_bytes = 1000\n", {}, {}).rows()}
    assert rows["limits.body_bytes"] == {"key": "limits.body_bytes", "value": 1000, "source": "config.toml"}
    assert {key for key in rows if str(key).startswith("limits.")} == {"limits.body_bytes"}


@pytest.mark.parametrize("text", ['# x\rhost = "0.0.0.0"\r', '# x\n\u00a0[auth]\n\u00a0required = false\n',
                                  '\u3000host = "1.2.3.4"\n', "# x\r", "\x0bport = 1\n"])  # fmt: skip
def test_what_only_looks_like_blank_or_a_new_line_is_no_comment(text: str) -> None:
    with pytest.raises(ConfigError):
        load(text, {}, {})


def test_comments_with_the_line_ends_of_other_systems_say_nothing() -> None:
    assert load("# a\r\n\r\n \t# b\r\n", {}, {}) == load("", {}, {})
