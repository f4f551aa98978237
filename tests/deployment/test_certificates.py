"""Certificates and keys as files, and handshakes with a server that shows them."""

import datetime
import os
import socket
import ssl
import threading
from pathlib import Path

import pytest

from hushprompt.deployment.operate import certificates, client, node_keys, secrets
from hushprompt.errors import ConfigError

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An authority, a good certificate, an expired one, one of another authority, one for another name."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ca", "other"):
        certificates.make_authority(folder / f"{name}.crt", folder / f"{name}.key", name, NOW)
    authority = (folder / "ca.crt", folder / "ca.key")
    other = (folder / "other.crt", folder / "other.key")
    certificates.make_server(folder / "good.crt", folder / "good.key", authority, ["server.example.org"], NOW)
    certificates.make_server(folder / "old.crt", folder / "old.key", authority, ["server.example.org"], NOW, days=-1)
    certificates.make_server(folder / "foreign.crt", folder / "foreign.key", other, ["server.example.org"], NOW)
    return folder


@pytest.fixture
def shown():
    """Show a certificate to whoever connects; gives the port."""
    open_servers = []

    def show(certificate, key):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server = socket.create_server(("127.0.0.1", 0))
        open_servers.append(server)

        def answer():
            try:
                plain, _ = server.accept()
                plain.settimeout(10)
                with plain, context.wrap_socket(plain, server_side=True):
                    pass
            except OSError:
                pass

        threading.Thread(target=answer, daemon=True).start()
        return server.getsockname()[1]

    yield show
    for server in open_servers:
        server.close()


def check_server(folder, certificate="good", key="good", ca="ca", now=NOW):
    return certificates.check_server(folder / f"{certificate}.crt", folder / f"{key}.key", folder / f"{ca}.crt", now)


def test_a_certificate_is_for_its_names_and_for_the_servers_own_processes(made):
    validity = certificates.read(made / "good.crt")
    assert validity.names == ("server.example.org", "127.0.0.1", "localhost")
    assert validity.days_left(NOW) == certificates.SERVER_DAYS - 1 or validity.days_left(NOW) == 365
    assert check_server(made) == []


def test_private_keys_can_be_read_by_their_owner_alone_and_are_never_overwritten(made, tmp_path):
    public = node_keys.make(tmp_path / "node.key", "a")
    for path in (made / "ca.key", made / "good.key", tmp_path / "node.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    before = (tmp_path / "node.key").read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        node_keys.make(tmp_path / "node.key", "a")
    assert (tmp_path / "node.key").read_bytes() == before
    node_keys.load_private(tmp_path / "node.key")
    assert node_keys.read_public(public).startswith(b"-----BEGIN PUBLIC KEY")
    (tmp_path / "node.key").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        node_keys.load_private(tmp_path / "node.key")


def test_what_no_client_could_trust_is_refused_before_the_server_starts(made, tmp_path):
    with pytest.raises(ConfigError, match=r"expired on .*federation renew"):
        check_server(made, "old", "old")
    with pytest.raises(ConfigError, match="was not signed by"):
        check_server(made, "foreign", "foreign")
    with pytest.raises(ConfigError, match="does not belong to the certificate"):
        check_server(made, key="foreign")
    with pytest.raises(ConfigError, match="cannot be read"):
        check_server(made, "missing")
    with pytest.raises(ConfigError, match="clock"):
        check_server(made, now=NOW - datetime.timedelta(days=2))
    (tmp_path / "text.crt").write_text("no certificate")
    with pytest.raises(ConfigError, match="no certificate in PEM form"):
        certificates.read(tmp_path / "text.crt")
    (warning,) = check_server(made, now=NOW + datetime.timedelta(days=certificates.SERVER_DAYS - 10))
    assert "expires in" in warning


def test_a_renewed_certificate_is_for_the_same_names_and_has_a_key_of_its_own(made, tmp_path):
    for name in ("ca.crt", "old.crt", "old.key"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    (tmp_path / "old.key").chmod(0o600)
    authority = (made / "ca.crt", made / "ca.key")
    certificates.renew_server(tmp_path / "old.crt", tmp_path / "old.key", authority, NOW)
    assert check_server(tmp_path, "old", "old") == []
    assert certificates.read(tmp_path / "old.crt").names == certificates.read(made / "old.crt").names
    assert (tmp_path / "old.key").read_bytes() != (made / "old.key").read_bytes()
    assert (tmp_path / "old.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.crt", "old.crt", "old.key"]


@pytest.mark.parametrize(
    ("shows", "host", "trusts", "reason"),
    [
        ("old", "localhost", "ca", "has expired"),
        ("foreign", "localhost", "ca", "did not sign"),
        ("good", "localhost", "other", "did not sign"),
        ("good", "127.0.0.2", "ca", "another name or address"),
    ],
)
def test_a_client_says_why_it_does_not_trust_a_server(made, shown, shows, host, trusts, reason):
    port = shown(made / f"{shows}.crt", made / f"{shows}.key")
    with pytest.raises(ConfigError, match=reason):
        client.check_trust(host if host != "127.0.0.2" else wrong_name(), port, made / f"{trusts}.crt")


def wrong_name():
    """A name of this machine that no certificate here has."""
    return "127.1"


def test_a_client_trusts_its_own_server_and_waits_for_one_that_is_not_there(made, shown):
    assert client.check_trust("localhost", shown(made / "good.crt", made / "good.key"), made / "ca.crt") == ""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "cannot be reached" in client.check_trust("127.0.0.1", port, made / "ca.crt")


def test_something_that_speaks_no_tls_is_no_server(made):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            plain, _ = server.accept()
            with plain:
                plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                plain.settimeout(5)
                plain.recv(4096)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(ConfigError, match="does not speak TLS"):
            client.check_trust("127.0.0.1", server.getsockname()[1], made / "ca.crt")
        thread.join()


def test_a_key_of_another_kind_is_refused(tmp_path, made):
    (tmp_path / "node.key").write_bytes((made / "good.key").read_bytes())
    (tmp_path / "node.key").chmod(0o600)
    with pytest.raises(ConfigError, match="OpenSSH form"):
        node_keys.load_private(tmp_path / "node.key")
    with pytest.raises(ConfigError, match="no public key"):
        node_keys.read_public(Path(made / "good.crt"))


def test_a_key_is_read_from_a_file_of_ones_own_and_through_no_link(tmp_path, monkeypatch):
    key, link, pipe = tmp_path / "node.key", tmp_path / "link.key", tmp_path / "pipe.key"
    secrets.write_new(key, b"secret")
    assert secrets.read(key) == b"secret"
    link.symlink_to(key)
    with pytest.raises(ConfigError, match="is a link"):
        secrets.read(link)
    os.mkfifo(pipe, 0o600)
    with pytest.raises(ConfigError, match="is no file"):
        secrets.read(pipe)
    with pytest.raises(ConfigError, match="Is a directory"):
        secrets.read(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match="belongs to another user"):
        secrets.read(key)
