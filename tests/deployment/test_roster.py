import dataclasses

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hushprompt.deployment import roster
from hushprompt.deployment.agreement import Agreement, Offer, read_agreement
from hushprompt.deployment.operate import node_keys
from hushprompt.errors import ConfigError, ProtocolError

OFFER = Offer(federation="trial", run="run-1", config="seed = 1", class_names=("cat", "dog"), backbone="f" * 64)
NAMES, SIZES = ("ann", "bob", "cyd"), (24, 25, 26)
IDENTITIES = {name: ec.generate_private_key(ec.SECP384R1()) for name in NAMES}
PINNED = {name: key.public_key() for name, key in IDENTITIES.items()}
RUN_KEYS = {name: roster.new_run_key() for name in NAMES}


def signed(offer, name, size, key):
    return roster.sign(IDENTITIES[name], roster.claim(offer, name, size, key)).hex()


def plan(offer=OFFER, **changes):
    keys = [roster.public_half(RUN_KEYS[name]) for name in NAMES]
    signatures = [signed(offer, *member) for member in zip(NAMES, SIZES, keys, strict=True)]
    made = {"clients": NAMES, "sizes": SIZES, "keys": tuple(key.hex() for key in keys), "signatures": tuple(signatures)}
    return Agreement(**OFFER.to_json(), **{**made, **changes})


def test_a_plan_whose_clients_all_signed_is_taken_and_pairs_have_one_secret():
    agreement = read_agreement(plan().to_json())
    roster.check_members(agreement, PINNED)
    pairs = {name: roster.pair_secrets(agreement, RUN_KEYS[name], NAMES) for name in NAMES}
    assert pairs["ann"]["bob"] == pairs["bob"]["ann"]
    assert len({secret for one in pairs.values() for secret in one.values()}) == 6, "three pairs, and each with itself"
    assert agreement.digest != dataclasses.replace(agreement, keys=agreement.keys[::-1]).digest
    assert agreement.digest != plan(signatures=agreement.signatures[::-1]).digest


def replaced(values, place, value):
    return (*values[:place], value, *values[place + 1 :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": ("ann", "bob", "eve")}, "has not pinned: eve"),
        ({"sizes": (24, 25, 27)}, "run key of cyd was not signed"),
        ({"class_names": ("cat", "cow")}, "run key of ann was not signed"),
        ({"run": "run-2"}, "run key of ann was not signed"),
        ({"clients": ("bob", "ann", "cyd")}, "was not signed"),
        ({"keys": (), "signatures": ()}, "no run keys"),
    ],
)
def test_a_plan_that_is_not_what_its_clients_signed_is_refused(change, message):
    with pytest.raises(ProtocolError, match=message):
        roster.check_members(dataclasses.replace(plan(), **change), PINNED)


def test_a_key_that_the_server_put_in_is_refused_and_so_is_anothers():
    healthy, own = plan(), roster.public_half(roster.new_run_key())
    exchanged = dataclasses.replace(healthy, keys=replaced(healthy.keys, 2, own.hex()))
    with pytest.raises(ProtocolError, match="run key of cyd was not signed by the key of cyd"):
        roster.check_members(exchanged, PINNED)
    stranger = roster.sign(ec.generate_private_key(ec.SECP384R1()), roster.claim(OFFER, "cyd", 26, own)).hex()
    with pytest.raises(ProtocolError, match="run key of cyd was not signed"):
        roster.check_members(
            dataclasses.replace(exchanged, signatures=replaced(healthy.signatures, 2, stranger)), PINNED
        )
    twice = bytes.fromhex(healthy.keys[0])
    twin = plan(
        keys=replaced(healthy.keys, 2, twice.hex()),
        signatures=replaced(healthy.signatures, 2, signed(OFFER, "cyd", 26, twice)),
    )
    with pytest.raises(ProtocolError, match="one run key"):
        roster.check_members(twin, PINNED)


def test_a_key_of_low_order_is_refused_though_its_client_signed_it():
    low, healthy = bytes(32), plan()
    bad = dataclasses.replace(
        healthy,
        keys=replaced(healthy.keys, 2, low.hex()),
        signatures=replaced(healthy.signatures, 2, signed(OFFER, "cyd", 26, low)),
    )
    roster.check_members(bad, PINNED)
    with pytest.raises(ProtocolError, match="run key of cyd is none"):
        roster.pair_secrets(bad, RUN_KEYS["ann"], NAMES)


@pytest.mark.parametrize(
    "change",
    [
        {"keys": ("00" * 32,) * 2},
        {"keys": ("00" * 31,) * 3},
        {"keys": ("AB" * 32,) * 3},
        {"keys": ("0x" * 32,) * 3},
        {"signatures": ("00" * 105,) * 3},
        {"signatures": ("0" * 33,) * 3},
        {"signatures": ()},
        {"num_late": 1},
    ],
)
def test_keys_of_another_form_are_refused(change):
    with pytest.raises(ProtocolError, match="run key"):
        read_agreement(plan(**change).to_json())


def test_peers_are_files_that_name_different_keys_on_one_curve(tmp_path):
    for name in NAMES:
        node_keys.make(tmp_path / name / "node.key", name)
        (tmp_path / "peers").mkdir(exist_ok=True)
        (tmp_path / "peers" / f"{name}.pub").write_bytes((tmp_path / name / "node.key.pub").read_bytes())
    peers = roster.read_peers(tmp_path / "peers")
    assert list(peers) == list(NAMES)
    assert roster.read_identity(tmp_path / "bob" / "node.key").public_key() == peers["bob"]
    (tmp_path / "peers" / "eve.pub").write_bytes((tmp_path / "peers" / "ann.pub").read_bytes())
    with pytest.raises(ConfigError, match=r"eve\.pub is the public key of another name"):
        roster.read_peers(tmp_path / "peers")
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    line = other.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (tmp_path / "peers" / "eve.pub").write_bytes(line)
    with pytest.raises(ConfigError, match="secp256r1, not on P-384"):
        roster.read_peers(tmp_path / "peers")
    with pytest.raises(ConfigError, match="has no public keys"):
        roster.read_peers(tmp_path / "nowhere")


def test_the_fingerprint_names_all_names_and_keys_and_no_order():
    told = roster.fingerprint(PINNED)
    assert told == roster.fingerprint(dict(reversed(PINNED.items())))
    assert [len(group) for group in told.split(" ")] == [4] * 16
    exchanged = {**PINNED, "ann": PINNED["bob"], "bob": PINNED["ann"]}
    assert len({told, roster.fingerprint(exchanged), roster.fingerprint({"ann": PINNED["ann"]})}) == 3
