import pytest
import tomli_w

from hushprompt.deployment.config import load_client, load_server
from hushprompt.errors import ConfigError


@pytest.fixture
def server(toy_values, tmp_path):
    """Write server.toml and run.toml with changes, and read them."""

    def write(changes=None, link=None, **federation):
        del toy_values["references"]
        run = {**toy_values, **(changes or {})}
        (tmp_path / "run.toml").write_text(tomli_w.dumps({k: v for k, v in run.items() if v is not None}))
        section = {"name": "trial", "run": "run.toml", "folder": "server", "clients": ["a", "b", "c"], **federation}
        path = tmp_path / "server.toml"
        path.write_text(tomli_w.dumps({"federation": section, "link": link or {}}))
        return load_server(path)

    return write


@pytest.fixture
def client(tmp_path):
    """Write client.toml and read it."""

    def write(**sections):
        values = {"client": {"name": "a", "store": "a"}, "owner": {"max_epsilon": 8}, **sections}
        path = tmp_path / "client.toml"
        path.write_text(tomli_w.dumps({k: v for k, v in values.items() if v is not None}))
        return load_client(path)

    return write


def test_paths_are_relative_to_the_file(server, client, tmp_path):
    config = server(link={"ca": "ca.crt"})
    assert config.folder == tmp_path / "server"
    assert config.link.ca == str(tmp_path / "ca.crt")
    assert config.link.key == ""
    assert config.run.method.rank == 2
    assert config.federation.quorum == 3
    own = client(data={"name": "folder", "root": "images"}, link={"key": "/keys/a"})
    assert own.store == tmp_path / "a"
    assert own.data.root == str(tmp_path / "images")
    assert own.link.key == "/keys/a"


def test_class_names_come_from_the_config_a_file_or_the_runs_data(server, tmp_path):
    assert server().class_names()[:2] == ("ant", "bee")


def test_class_names_from_a_file_let_the_run_leave_out_its_data(server, tmp_path):
    (tmp_path / "classes.txt").write_text("cat\n\nred fox\n")
    config = server(classes_file="classes.txt", changes={"data": None, "partition": None})
    assert config.class_names() == ("cat", "red fox")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": []}, "at least one client"),
        ({"clients": ["a", "a"]}, "each once"),
        ({"clients": ["../a"]}, "must begin with a letter"),
        ({"name": "a/b"}, "federation.name must begin"),
        ({"min_clients": 4}, "min_clients must lie in"),
        ({"round_deadline_s": 0}, "round_deadline_s must be > 0"),
        ({"classes": ["cat"], "classes_file": "x"}, "exclude each other"),
        ({"run": "nothing.toml"}, "cannot be read"),
        ({"deadline": 3}, "Unknown key 'deadline'"),
        ({"changes": {"references": [{"epsilon": 1.0}]}}, "trains one method"),
        ({"changes": {"training": {"dropout_rate": 0.5}}}, "dropout_rate simulates"),
        ({"changes": {"evaluation": {"base_classes": 3}}}, "means nothing in a federation"),
        ({"changes": {"data": None}}, "section data is missing"),
    ],
)
def test_a_wrong_server_config_says_what_is_wrong(server, changes, message):
    with pytest.raises(ConfigError, match=message):
        server(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "A client needs data"),
        ({"share": {"client": -1}}, "client must be >= 0"),
        ({"share": {"client": 0}, "owner": {}}, "incomplete.*max_epsilon"),
        ({"share": {"client": 0}, "owner": {"max_epsilon": 0}}, "max_epsilon must be > 0"),
        ({"share": {"client": 0}, "owner": {"max_epsilon": 1, "require_noise_at": "server"}}, "require_noise_at"),
        ({"share": {"client": 0}, "privacy": {}}, "Unknown key 'privacy' at the top level"),
        ({"share": {"client": 0}, "client": {"name": "", "store": "s"}}, "client.name must begin"),
    ],
)
def test_a_wrong_client_config_says_what_is_wrong(client, changes, message):
    with pytest.raises(ConfigError, match=message):
        client(**changes)


@pytest.mark.parametrize(
    ("changes", "noise_at", "why"),
    [
        ({}, "shares", ""),
        ({"min_clients": 2}, "server", "needs at least 3 clients a round"),
        ({"clients": ["a", "b"]}, "server", "needs at least 3 clients a round"),
        ({"changes": {"training": {"num_rounds": 1, "cohort_size": 2}}}, "server", "needs at least 3 clients a round"),
        (
            {"changes": {"training": {"local_steps": 2}, "sampling": {"name": "disjoint", "steps_per_round": 2}}},
            "server", "training.local_steps = 2 would need all of the noise at each client",
        ),
        ({"changes": {"method": {"name": "dp_fpl_released"}}}, "server", "clipped batches"),
        ({"changes": {"method": {"name": "local_only"}}}, "server", ""),
        ({"changes": {"privacy": {"max_dropouts": 1}}}, "server", "needs at least 4 clients a round"),
        ({"changes": {"privacy": {"noise_at": "server"}}}, "server", None),
        ({"changes": {"privacy": {"noise_at": "client"}}}, "client", None),
        ({"changes": {"privacy": {"noise_at": "shares"}}, "clients": ["a", "b"]}, "shares", None),
    ],
)  # fmt: skip
def test_where_noise_is_added_follows_from_the_federation_where_the_run_leaves_it_open(server, changes, noise_at, why):
    config = server(**changes)
    assert config.run.privacy.noise_at == noise_at
    assert config.why_not_shares == why or why in config.why_not_shares
    assert config.run.privacy.max_dropouts == 0, "which means nothing there"
