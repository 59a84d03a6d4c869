"""roost.toml: what is read, and what is refused, with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from roost_crdt.errors import ConfigError
from roostd.config import Config, Neighbour, load, load_credentials, load_policies
from roostd.settings import SETTINGS, Address, env_name, is_loopback

BASE = '[node]\nid = "eu-1"\nregion = "eu"\n'
SECRET = '[ops]\nsecret_sha256 = "' + "a" * 64 + '"\nrights = "admin"\n'

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_config(text: str) -> Path:
        path = tmp_path / "roost.toml"
        path.write_text(text)
        return path

    return write_config


def fault(path: Path | None, environ: dict[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    return caught.value


def secret_file(path: Path, mode: int = 0o600) -> Path:
    path.write_text("secret")
    path.chmod(mode)
    return path


FULL = """
[node]
id = "eu-1"
region = "eu"
data = "data"
cluster = "prod"
public = "https://eu.example/"
[listen]
unix = "roost.sock"
resp = "0.0.0.0:7667"
http = "[::1]:7668"
gossip = "0.0.0.0:7669"
[[neighbour]]
id = "us-1"
url = "wss://us-1.example:7669"
[gossip]
cert = "node.pem"
key = "node.key"
ca = "ca.pem"
insecure = false
[token]
keys = "keys/"
ttl_s = 600
[session]
takeover_after_ms = 500
follow_after_turns = 0
[consensus]
backend = "etcd"
endpoints = ["https://etcd:2379", "https://etcd-2:2379"]
ca = "ca.pem"
cert = "node.pem"
key = "node.key"
user = "roost"
password_file = "password"
deadline_ms = 1000
[store]
size_max = "1GiB"
log_retention = "64MiB"
[limits]
value_max = "1MiB"
body_max = "2MiB"
[access]
credentials = "credentials.toml"
policies = "policies.toml"
[resp.db]
3 = "litellm:"
"""


def write_full(tmp_path: Path) -> Path:
    for name in ("node.key", "password"):
        secret_file(tmp_path / name)
    for name in ("node.pem", "ca.pem"):
        (tmp_path / name).write_text("certificate")
    (tmp_path / "credentials.toml").write_text(SECRET)
    (tmp_path / "policies.toml").write_text(
        '[weights]\nreaders = "cross-session"\nstale_read_cost = "annoying"\ntype = "register"\n'
    )
    path = tmp_path / "roost.toml"
    path.write_text(FULL)
    return path


def test_every_value_of_the_contract(tmp_path: Path) -> None:
    config = load(write_full(tmp_path), {})
    assert config.node.data == tmp_path / "data"
    assert (config.node.cluster, config.node.public) == ("prod", "https://eu.example")
    assert config.listen.unix == tmp_path / "roost.sock"
    assert config.listen.resp == Address("0.0.0.0", 7667)
    assert config.listen.http == Address("::1", 7668)
    assert str(config.listen.http) == "[::1]:7668"
    assert config.neighbours == (Neighbour("us-1", "wss://us-1.example:7669"),)
    assert config.gossip.tls
    assert config.gossip.key == tmp_path / "node.key"
    assert (config.token.keys, config.token.ttl_s) == (tmp_path / "keys", 600)
    assert (config.session.takeover_after_ms, config.session.follow_after_turns) == (500, 0)
    assert config.consensus.endpoints == ("https://etcd:2379", "https://etcd-2:2379")
    assert config.consensus.password_file == tmp_path / "password"
    assert (config.store.size_max, config.store.log_retention) == (1 << 30, 64 << 20)
    assert config.core_limits().value_bytes_max == 1 << 20
    assert config.core_limits().body_bytes_max == 2 << 20
    assert config.resp_db == {3: "litellm:"}
    assert config.warnings == ()
    assert list(load_policies(config).policies) == ["weights"]
    assert load_credentials(config).required


def test_the_defaults_need_only_a_name_and_a_region(write: Write) -> None:
    config = load(write(BASE), {})
    assert config.listen.resp == Address("127.0.0.1", 7667)
    assert config.listen.unix == Path("/run/roost/roost.sock")
    assert config.consensus.backend == "none"
    assert not config.gossip.tls
    assert "conversation_buffer" in load_policies(config).policies
    assert not load_credentials(config).required


def test_a_policy_file_beside_the_configuration_is_used(write: Write, tmp_path: Path) -> None:
    (tmp_path / "policies.toml").write_text("")
    assert load(write(BASE), {}).access.policies == tmp_path / "policies.toml"


ENVIRONMENT = {
    "ROOST_NODE_ID": "us-1",
    "ROOST_NODE_REGION": "us",
    "ROOST_LISTEN_HTTP": "127.0.0.1:0",
    "ROOST_LISTEN_UNIX": "",
    "ROOST_GOSSIP_INSECURE": "true",
    "ROOST_NEIGHBOUR": "eu-1=ws://127.0.0.1:1, ap-1=ws://localhost:2",
    "ROOST_SESSION_FOLLOW_AFTER_TURNS": "7",
    "ROOST_STORE_SIZE_MAX": "64MiB",
    "ROOST_CONSENSUS_BACKEND": "embedded",
    "ROOST_CONSENSUS_ENDPOINTS": "roost://eu-1",
    "ROOST_RESP_DB": "3=litellm:,4=x:",
    "ROOST_URL": "redis://elsewhere",
    "ROOST_GOSSIP_SERVICE_HOST": "10.0.0.1",
    "ROOST_GOSSIP_PORT_7669_TCP_ADDR": "10.0.0.1",
}


@pytest.mark.parametrize("with_file", [True, False])
def test_the_environment_gives_every_value(write: Write, with_file: bool) -> None:
    config = load(write(BASE) if with_file else None, ENVIRONMENT)
    assert (config.node.id, config.node.region) == ("us-1", "us")
    assert config.listen.http == Address("127.0.0.1", 0)
    assert config.listen.unix is None
    assert [neighbour.id for neighbour in config.neighbours] == ["eu-1", "ap-1"]
    assert config.session.follow_after_turns == 7
    assert config.store.size_max == config.store.log_retention == 64 << 20
    assert config.consensus.endpoints == ("roost://eu-1",)
    assert config.resp_db == {3: "litellm:", 4: "x:"}


def test_each_setting_has_a_meaning_and_an_environment_variable(write: Write) -> None:
    path = write(BASE)
    for setting in SETTINGS:
        assert setting.doc.endswith(".")
        said = str(fault(path, {env_name(setting.section, setting.key): "\0"}))
        assert said.startswith(f"environment variable ROOST_{setting.section.upper()}_")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[listen]\nhtp = 3\n", '5: unknown key "htp" in [listen]; did you mean "http"?'),
        ("[lisen]\n", '4: unknown key "lisen"; did you mean "listen"?'),
        ("[resp]\nbd = 3\n", '5: unknown key "bd" in [resp]'),
        ("[store]\nsize_max = '8GB'\n", '5: size_max: "8GB" has the unit "GB", which is no size'),
        ("[store]\nsize_max = 8\n", "5: size_max: 8 has no unit"),
        ("[store]\nsize_max = '1KiB'\n", '5: size_max: "1KiB" is less than the 1048576 bytes'),
        ("[token]\nttl_s = '1h'\n", "5: ttl_s: '1h' is not a whole number"),
        ("[token]\nttl_s = 5\n", "5: ttl_s: 5 is out of range; 10 to 2592000"),
        ("[token]\nttl_s = true\n", "5: ttl_s: True is not a whole number"),
        ("[gossip]\ninsecure = 'maybe'\n", "5: insecure: 'maybe' is neither true nor false"),
        ("[listen]\nhttp = '7668'\n", '5: http: "7668" is not an address'),
        ("[listen]\nhttp = ':7668'\n", '5: http: ":7668" is not an address'),
        ("[listen]\nhttp = '::1:7668'\n", '5: http: "::1:7668" is not an address'),
        ("[listen]\nhttp = '1.2.3.4:99999'\n", "5: http:"),
        ("[listen]\nhttp = 7668\n", "5: http: 7668 is not an address"),
        (
            "[listen]\nhttp = 'localhost:1'\nresp = 'localhost:1'\n",
            "5: localhost:1 is already taken",
        ),
        ("[listen]\nunix = ''\nresp = ''\nhttp = ''\n", "5: no client could connect"),
        ("[listen]\nunix = '" + "x" * 120 + "'\n", "5: unix:"),
        ("listen = 3\n", '4: unknown key "listen" in [node]'),
        ("[node2]\n", "4: unknown key"),
        ("[consensus]\nbackend = 'raft'\n", "5: backend: cannot be 'raft'; use \"etcd\" or"),
        ("[consensus]\nbackend = 'etcd'\n", "4: the backend etcd needs endpoints"),
        ("[consensus]\nendpoints = ['https://e:1']\n", "5: endpoints need a backend"),
        ("[consensus]\nendpoints = 3\n", "5: endpoints: 3 is not a list"),
        ("[consensus]\nbackend='etcd'\nendpoints = ['etcd:1']\n", '6: "etcd:1" is not a URL'),
        ("[consensus]\nbackend='etcd'\nendpoints = ['https://e:x']\n", '6: "https://e:x" is not'),
        ("[consensus]\nbackend='embedded'\nendpoints = ['https://e']\n", "is not of the form"),
        ("[consensus]\nbackend='embedded'\nendpoints = ['roost://us-1']\n", '6: "us-1" is no neig'),
        (
            "[consensus]\nbackend='embedded'\nendpoints = ['roost://a', 'roost://b']\n",
            "6: the embed",
        ),
        ("[consensus]\nuser = 'roost'\n", "5: [consensus] user and password_file come together"),
        ("[consensus]\ncert = 'x'\n", "5: [consensus] cert and key come together"),
        ("[limits]\nvalue_max = '32MiB'\n", "4: body_max is less than value_max"),
        ("[access]\npolicies = 'nowhere.toml'\n", "nowhere.toml cannot be read: No such file"),
        ("[access]\ncredentials = 'nowhere.toml'\n", "5: "),
        ("[resp.db]\n0 = 'x'\n", '5: "0" is not a database number from 1 to 15'),
        ("[resp.db]\n3 = 4\n", "5: a prefix is a text"),
        ("[resp]\ndb = 3\n", "5: write [resp.db]"),
        ("[neighbour]\nid = 'x'\n", "4: write each neighbour as [[neighbour]]"),
    ],
)
def test_a_fault_is_named_with_its_line(write: Write, text: str, said: str) -> None:
    error = fault(write(BASE + text))
    assert said in str(error)
    assert error.line >= 4
    assert error.file.endswith("roost.toml")


def test_what_is_missing_or_unreadable(write: Write, tmp_path: Path) -> None:
    assert "[node] lacks region" in str(fault(write('[node]\nid = "x"\n')))
    assert "[node] lacks id" in str(fault(write("")))
    assert "`roost init DIR`" in str(fault(tmp_path / "nowhere.toml"))
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"\xff")
    assert "is not UTF-8 at byte 0" in str(fault(bad))
    assert "-x' is not a name" in str(fault(write('[node]\nid = "-x"\nregion = "eu"\n')))


NEIGHBOUR = "[[neighbour]]\nid = '{}'\nurl = '{}'\n"
INSECURE = "[gossip]\ninsecure = true\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NEIGHBOUR.format("eu-1", "ws://127.0.0.1:1"), '5: neighbour "eu-1" has the id of this'),
        (NEIGHBOUR.format("a", "ws://127.0.0.1:1") * 2, '8: neighbour "a" is listed twice'),
        (NEIGHBOUR.format("a", "http://x:1"), '6: url: "http://x:1" is not a URL'),
        (NEIGHBOUR.format("a", "ws://127.0.0.1"), "has no port"),
        (NEIGHBOUR.format("a", "ws://127.0.0.1:x"), "6: url:"),
        (NEIGHBOUR.format("a", "ws://127.0.0.1:1/rpc"), "has a path"),
        (NEIGHBOUR.format("a", "ws://127.0.0.1:1") + "port = 3\n", '7: unknown key "port"'),
        ("[[neighbour]]\nid = 'a'\n", "4: this neighbour lacks url"),
        ("neighbour = [3]\n", "unknown key"),
    ],
)
def test_faults_of_neighbours(write: Write, text: str, said: str) -> None:
    assert said in str(fault(write(BASE + text + INSECURE)))


def test_faults_of_neighbours_in_the_environment(write: Write) -> None:
    path = write(BASE)
    twice = {"ROOST_NEIGHBOUR": "a=ws://localhost:1,a=ws://localhost:2"}
    assert "listed twice" in str(fault(path, twice | {"ROOST_GOSSIP_INSECURE": "1"}))
    assert '"a" is not of the form NAME=VALUE' in str(fault(path, {"ROOST_NEIGHBOUR": "a"}))
    assert "write each" in str(fault(write("neighbour = [3]\n" + BASE)))
    assert "write each" in str(fault(write("neighbour = 3\n" + BASE)))


def test_a_mistyped_variable_is_refused(write: Write) -> None:
    said = str(fault(write(BASE), {"ROOST_LISTEN_HTP": "127.0.0.1:1"}))
    assert said == (
        "environment variable ROOST_LISTEN_HTP: no setting has this name; "
        'did you mean "ROOST_LISTEN_HTTP"?'
    )


@pytest.mark.parametrize("key", ["resp", "http"])
@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "[::]", "eu.example"])
def test_listening_beyond_loopback_needs_credentials(
    write: Write, tmp_path: Path, key: str, host: str
) -> None:
    text = f"{BASE}[listen]\n{key} = '{host}:7000'\n"
    error = fault(write(text))
    assert error.line == 5
    assert "beyond loopback" in str(error)
    assert "set [access] credentials" in str(error)
    (tmp_path / "c.toml").write_text(SECRET)
    assert load(write(text + "[access]\ncredentials = 'c.toml'\n"), {}).listen


def test_gossip_beyond_loopback_needs_tls(write: Write) -> None:
    for extra in ("", INSECURE):
        error = fault(write(f"{BASE}[listen]\ngossip = '0.0.0.0:7669'\n{extra}"))
        assert error.line == 5
        assert "beyond loopback, without TLS" in str(error)
        remote = fault(write(BASE + NEIGHBOUR.format("a", "ws://10.0.0.1:1") + extra))
        assert remote.line == 6
        assert "use wss://" in str(remote)
    plain = BASE + NEIGHBOUR.format("a", "ws://127.0.0.1:1")
    assert "insecure = true" in str(fault(write(plain)))
    assert load(write(plain + INSECURE), {}).gossip.insecure
    tls = BASE + NEIGHBOUR.format("a", "wss://127.0.0.1:1")
    assert "set cert, key and ca" in str(fault(write(tls)))


def test_half_a_certificate_is_refused(write: Write) -> None:
    assert "5: [gossip] has cert but lacks key and ca" in str(
        fault(write(BASE + "[gossip]\ncert = 'x'\n"))
    )


@pytest.mark.parametrize("name", ["node.key", "password", "keys/a.pem"])
def test_a_secret_that_everybody_can_read_is_refused(tmp_path: Path, name: str) -> None:
    path = write_full(tmp_path)
    (tmp_path / "keys").mkdir()
    secret_file(tmp_path / name, 0o644)
    error = fault(path)
    assert error.file == str(path)
    assert error.line > 1
    assert f"{tmp_path / name} is a secret that everybody" in str(error)
    assert "(mode 0644); chmod 600" in str(error)
    (tmp_path / name).chmod(0o640)
    assert load(path, {}).gossip.tls


def test_a_missing_secret_is_named(tmp_path: Path) -> None:
    path = write_full(tmp_path)
    (tmp_path / "node.key").unlink()
    assert "node.key cannot be read: No such file" in str(fault(path))


def test_policies_and_credentials_are_checked_at_start_up(tmp_path: Path) -> None:
    path = write_full(tmp_path)
    (tmp_path / "policies.toml").write_text("[weights]\nreader = 'all'\n")
    error = fault(path)
    assert (Path(error.file).name, error.line) == ("policies.toml", 2)
    assert 'did you mean "readers"?' in str(error)
    path = write_full(tmp_path)
    (tmp_path / "credentials.toml").write_text(SECRET.replace("admin", "root"))
    error = fault(path)
    assert (Path(error.file).name, error.line) == ("credentials.toml", 3)
    (tmp_path / "credentials.toml").write_text(SECRET)
    (tmp_path / "credentials.toml").chmod(0o666)
    assert "can be written by everybody" in str(fault(path))


def test_warnings_are_handed_on(write: Write, tmp_path: Path) -> None:
    (tmp_path / "policies.toml").write_text(
        '[w]\nreaders = "cross-session"\nstale_read_cost = "annoying"\ntype = "register"\n'
        'consistency = "linearizable"\n'
    )
    etcd = "[consensus]\nbackend = 'etcd'\nendpoints = ['http://etcd:2379']\n"
    first, second = load(write(BASE + etcd), {}).warnings
    assert "http://etcd:2379 is etcd beyond loopback without TLS" in first
    assert "linearizable costs more" in second


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "eu.example", "")))


def test_a_configuration_cannot_be_changed(write: Write) -> None:
    config: Config = load(write(BASE), {})
    with pytest.raises(AttributeError):
        config.node.id = "other"  # type: ignore[misc]
