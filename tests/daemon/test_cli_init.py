"""`roost init`: what it writes is complete, safe, and starts as it is."""

from __future__ import annotations

import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from roostd.cli.certificates import Authority
from roostd.cli.main import main
from roostd.config import load, load_policies
from roostd.keyring import Keyring
from roostd.settings import SETTINGS


def init(directory: Path, *options: str) -> Result:
    return CliRunner().invoke(
        main, ["init", str(directory), "--node", "eu-1", "--region", "eu", *options]
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_node_alone(tmp_path: Path) -> None:
    home = tmp_path / "eu"
    done = init(home)
    assert done.exit_code == 0, done.output
    assert f"roostd --config {home}/roost.toml" in done.output
    config = load(home / "roost.toml", {})
    assert (config.node.id, config.node.region) == ("eu-1", "eu")
    assert config.node.data == home / "data"
    assert config.listen.unix == home / "roost.sock"
    assert config.consensus.backend == "embedded"
    assert config.warnings == ()
    assert "conversation_buffer" in load_policies(config).policies
    (key,) = (home / "keys").iterdir()
    assert mode(key) == 0o600
    assert mode(home / "keys") == 0o700
    assert Keyring.load(home / "keys", node="eu-1", audience="default").kid == key.stem


def test_the_file_is_complete_and_commented(tmp_path: Path) -> None:
    init(tmp_path / "eu")
    text = (tmp_path / "eu" / "roost.toml").read_text()
    for setting in SETTINGS:
        assert f"\n{setting.key} = " in text or f"\n# {setting.key} = " in text
        assert setting.doc.split()[0] in text
    assert "[[neighbour]]" in text
    # Every commented-out line is one that could be taken as it stands.
    uncommented = "\n".join(
        line.removeprefix("# ") if line.startswith("# ") and " = " in line else line
        for line in text.splitlines()
        if not line.startswith("#   ")
    )
    keys = {key for table in tomllib.loads(_tables(uncommented)).values() for key in table}
    assert {setting.key for setting in SETTINGS} <= keys


def _tables(text: str) -> str:
    """Only the tables and pairs of settings, for a parse of what was commented out."""
    known = {setting.key for setting in SETTINGS}
    lines: list[str] = []
    skipping = False
    for line in text.splitlines():
        if line.startswith("["):
            skipping = line.startswith(("[[", "[resp"))
        key, equals, _ = line.partition(" = ")
        if not skipping and (line.startswith("[") or (equals and key in known)):
            lines.append(line)
    return "\n".join(lines)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    home = tmp_path / "eu"
    assert init(home).exit_code == 0
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    again = init(home)
    assert again.exit_code == 1
    assert "already holds roost.toml, policies.toml, keys; nothing was written" in again.output
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    (home / "roost.toml").unlink()
    assert init(home).exit_code == 1


def test_neighbours_on_loopback(tmp_path: Path) -> None:
    done = init(
        tmp_path / "eu",
        "--neighbour=us-1=ws://127.0.0.1:7769",
        "--neighbour=ap-1=ws://127.0.0.1:7869",
        "--consensus=roost://us-1",
        "--cluster=trial",
        "--http=127.0.0.1:9000",
    )
    assert done.exit_code == 0, done.output
    config = load(tmp_path / "eu" / "roost.toml", {})
    assert [neighbour.id for neighbour in config.neighbours] == ["us-1", "ap-1"]
    assert config.gossip.insecure
    assert not config.gossip.tls
    assert config.consensus.endpoints == ("roost://us-1",)
    assert (config.node.cluster, config.listen.http) == ("trial", ("127.0.0.1", 9000))


def test_two_nodes_do_not_host_two_truths(tmp_path: Path) -> None:
    done = init(tmp_path / "eu", "--neighbour=us-1=ws://127.0.0.1:7769")
    assert load(tmp_path / "eu" / "roost.toml", {}).consensus.backend == "none"
    assert "linearizable keys" in done.output
    init(tmp_path / "ap", "--neighbour=us-1=ws://127.0.0.1:1", "--consensus=https://etcd:2379")
    assert load(tmp_path / "ap" / "roost.toml", {}).consensus.backend == "etcd"


def test_certificates_of_one_authority(tmp_path: Path) -> None:
    """The second node is issued by the authority that the first one made."""
    first = init(tmp_path / "eu", "--neighbour=us-1=wss://us-1.example:7669")
    assert first.exit_code == 0, first.output
    config = load(tmp_path / "eu" / "roost.toml", {})
    assert config.gossip.tls
    assert not config.gossip.insecure
    authority = tmp_path / "eu" / "ca"
    second = CliRunner().invoke(
        main,
        [
            *("init", str(tmp_path / "us"), "--node=us-1", "--region=us"),
            *(f"--ca={authority}", "--neighbour=eu-1=wss://eu-1.example:7669"),
        ],
    )
    assert second.exit_code == 0, second.output
    for home, node in ((tmp_path / "eu", "eu-1"), (tmp_path / "us", "us-1")):
        assert mode(home / "node.key") == 0o600
        certificate = x509.load_pem_x509_certificate((home / "node.pem").read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert names.value.get_values_for_type(x509.DNSName) == [node]
        root = x509.load_pem_x509_certificate((home / "ca.pem").read_bytes())
        certificate.verify_directly_issued_by(root)
        key = load_pem_private_key((home / "node.key").read_bytes(), None)
        assert key.public_key() == certificate.public_key()
    assert (tmp_path / "eu" / "ca.pem").read_bytes() == (tmp_path / "us" / "ca.pem").read_bytes()
    assert mode(authority / "ca.key") == 0o600


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_accepts_the_chain(tmp_path: Path) -> None:
    init(tmp_path / "eu", f"--ca={tmp_path / 'ca'}")
    checked = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", "ca.pem", "node.pem"],
        cwd=tmp_path / "eu",
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.stdout.strip() == "node.pem: OK", checked.stderr


def test_an_authority_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca" / "ca.pem").write_text("nonsense")
    done = init(tmp_path / "eu", f"--ca={tmp_path / 'ca'}")
    assert done.exit_code == 1
    assert "holds no usable ca.pem and ca.key" in done.output
    assert Authority.create(tmp_path / "other", "prod").certificate.subject.rfc4514_string()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--node=-x"], "is not a name"),
        (["--neighbour=us-1"], "is not of the form ID=URL"),
        (["--neighbour=us-1=http://x:1"], "is not a URL such as wss://"),
        (["--neighbour=us-1=ws://127.0.0.1"], "has no port"),
        (["--consensus=raft"], "use embedded, roost://NODE, an etcd URL or none"),
    ],
)
def test_usage(tmp_path: Path, options: list[str], said: str) -> None:
    done = init(tmp_path / "eu", *options)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
    assert not (tmp_path / "eu").exists()


def test_a_deep_directory_has_no_room_for_a_socket(tmp_path: Path) -> None:
    home = tmp_path / ("d" * 60) / ("e" * 60)
    assert init(home).exit_code == 0
    assert load(home / "roost.toml", {}).listen.unix is None
