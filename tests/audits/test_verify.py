"""What was edited is told: numbers, files, charges, hashes. What was not is confirmed, also without the data."""

import json
import re
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

import hushprompt as hp
from helpers.deployments import NAMES, Deployment
from helpers.made_runs import train
from helpers.runs import TOY
from hushprompt.audits.confirmation import is_confirmed
from hushprompt.audits.verify import verify
from hushprompt.deployment.operate.status import guarantees
from hushprompt.errors import DataError
from hushprompt.privacy.accounting import epsilon
from hushprompt.privacy.releases import GaussianReleases
from hushprompt.privacy.statements import CLASSES_DECLARED
from hushprompt.runs import manifest
from hushprompt.statistics import metric

CHANGES = {"training": {"num_rounds": 4, "cohort_size": 2}, "references": [{"method": {"name": "zero_shot"}}]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose data are gone."""
    root = tmp_path_factory.mktemp("verified")
    return train(root / "run", root / "cache", **CHANGES)


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values, indent=2) + "\n")


def told(folder, *words, rewritten=True):
    """What is told of a folder whose hashes were written anew, so that they give nothing away."""
    if rewritten:
        manifest.write(folder)
    found = verify(folder)
    assert not found.is_consistent
    for word in words:
        assert any(re.search(word, text) for text in found.differences), found.differences
    return found


def test_a_copy_of_a_run_without_its_data_is_confirmed(folder):
    found = hp.verify(folder)
    assert found.is_consistent, found.differences
    assert not found.not_recorded
    assert "DP-FPL" not in repr(found)
    assert found.digest in repr(found)
    assert len(found.digest) == 64
    assert hp.verify(folder, digest=found.digest).is_consistent
    assert "the folder is not the one it was" in hp.verify(folder, digest="0" * 64).differences[0]
    assert sorted(json.loads((folder / "manifest.json").read_text())["sha256"]) == [
        "confusion/arm-000.json", "confusion/arm-001.json", "identity.json", "ledger.jsonl", "partition.json",
        "privacy.json", "prompts/client-000.safetensors", "prompts/client-001.safetensors",
        "prompts/client-002.safetensors", "prompts/global.safetensors", "records.jsonl", "summary.json",
    ]  # fmt: skip


def smaller_epsilon(values):
    values["arms"][-1]["epsilon"] = 0.1


def smaller_guarantee(values):
    held = values["arms"][-1]["audiences"]["personal"]
    held["epsilon"], held["statement"] = 0.1, re.sub(r"epsilon = \S+", "epsilon = 0.1", held["statement"], count=1)


def more_noise(values):
    values["arms"][-1]["noise_multipliers"]["local"] *= 2


def smaller_delta(values):
    values["arms"][-1]["audiences"]["public"]["delta"] = 1e-9


def no_simulation(values):
    values["arms"][-1]["noise_source"] = "secure"


def no_simulated_guarantee(values):
    values["arms"][-1]["audiences"]["public"]["noise_source"] = "secure"


def one_account_less(values):
    values["arms"][-1]["clients"].pop()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("summary.json", smaller_epsilon, [r"summary\.json, dp_fpl, epsilon 8, epsilon is 0\.1, computed: "]),
        (
            "privacy.json",
            smaller_guarantee,
            [r"personal, epsilon is 0\.1, computed", r"personal, statement says epsilon = 0\.1"],
        ),
        ("privacy.json", more_noise, ["noise_multipliers, local is "]),
        ("privacy.json", smaller_delta, ["public, delta is 1e-09"]),
        (
            "privacy.json",
            no_simulated_guarantee,
            ["public says that noise is secure, and config.toml"],
        ),
        ("summary.json", no_simulation, ["noise is secure, and config.toml that it is seeded"]),
        ("privacy.json", one_account_less, ["clients is "]),
        ("privacy.json", lambda values: values["arms"].pop(), ["privacy.json has no arm 'dp_fpl, epsilon 8'"]),
        ("partition.json", lambda values: values["client_names"].reverse(), ["partition.json has other clients"]),
        (
            "identity.json",
            lambda values: values["settings"].update(seed=9),
            ["seed was 9 and is 1", "another identity"],
        ),
        (
            "identity.json",
            lambda values: values.update(backbone="0" * 64),
            ["global.safetensors is of another backbone"],
        ),
    ],
)
def test_an_edited_record_is_told_though_the_hashes_were_made_anew(folder, name, change, words):
    edit(folder / name, change)
    assert f"{name} was changed after the run ended" in verify(folder).differences
    told(folder, *words)


def test_charges_that_were_taken_out_are_told(folder):
    path = folder / "ledger.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:1]) + "\n")
    told(
        folder,
        "charges 1 of 4 rounds",
        "records.jsonl has rounds that ledger.jsonl does not charge: 2, 3, 4",
        "epsilon is",
    )
    entry = json.loads(lines[0])
    path.write_text("\n".join([json.dumps({**entry, "clients": entry["clients"][:1]}), *lines[1:]]) + "\n")
    told(folder, "charges other clients in round 1")
    path.write_text("\n".join([*lines, json.dumps({**entry, "round": 9})]) + "\n")
    told(folder, "charges round 9 of 4")
    path.write_text("\n".join([json.dumps({**entry, "identity": "0" * 16}), *lines[1:]]) + "\n")
    told(folder, "charges for the identity 0000")
    path.unlink()
    told(folder, "charges 0 of 4 rounds")


def test_a_config_of_more_noise_is_told(folder):
    path = folder / "config.toml"
    path.write_text(path.read_text().replace("epsilon = 8.0", "epsilon = 1.0", 1))
    told(folder, "config.toml: privacy.epsilon was 8.0 and is 1.0", "computed")


def rewrite_prompt(path, change):
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["hushprompt"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    change(header, tensors)
    save_file(tensors, path, metadata={"hushprompt": json.dumps(header)})


def test_a_prompt_that_claims_less_or_is_another_one_is_told(folder):
    def claim(header, tensors):
        header["privacy"] = re.sub(r"epsilon = \S+", "epsilon = 0.1", header["privacy"])

    rewrite_prompt(folder / "prompts" / "client-001.safetensors", claim)
    told(folder, r"prompts/client-001\.safetensors says epsilon = 0\.1, computed")

    def move(header, tensors):
        next(iter(tensors.values())).add_(1)

    rewrite_prompt(folder / "prompts" / "client-002.safetensors", move)
    assert "prompts/client-002.safetensors was changed after the run ended" in verify(folder).differences
    shutil.copy(folder / "prompts" / "client-002.safetensors", folder / "prompts" / "client-009.safetensors")
    assert "prompts/client-009.safetensors was added after the run ended" in verify(folder).differences
    (folder / "prompts" / "global.safetensors").unlink()
    assert "prompts/global.safetensors is gone" in verify(folder).differences


def test_a_damaged_file_is_a_difference_and_no_folder_is_an_error(folder, tmp_path):
    (folder / "privacy.json").write_text("{")
    told(folder, "privacy.json is damaged")
    (folder / "privacy.json").write_text('{"arms": [3]}')
    told(folder, "privacy: ")
    with pytest.raises(DataError, match="not a run folder"):
        verify(tmp_path)


def test_the_commands_tell_what_was_edited(folder, hush):
    assert "no contradiction" in hush("privacy", str(folder)).out
    assert hush("verify", str(folder)).code == 0
    edit(folder / "summary.json", smaller_epsilon)
    edit(folder / "privacy.json", smaller_guarantee)
    path = folder / "ledger.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    for name in ("verify", "privacy"):
        done = hush(name, str(folder), ok=False)
        assert done.code == 1
        assert "DIFFERENCE: privacy.json was changed after the run ended." in done.out
    said = hush("privacy", str(folder), ok=False).out
    assert "personal: epsilon (simulation) by accountant: pld 0.1" not in said
    assert "epsilon = 0.1" not in said.replace("says epsilon = 0.1", ""), "what is said is computed"
    for name in ("show", "compare"):
        assert "privacy.json was changed after the run ended" in " ".join(hush(name, str(folder)).out.split())


def test_python_says_what_is_computed_as_the_command_line_does(folder):
    true = hp.load(folder)
    said, epsilon_of = true.statement(), true.guarantees["personal"].epsilon
    assert epsilon_of > 1
    assert not true.guarantees["personal"].warnings
    edit(folder / "privacy.json", smaller_guarantee)
    run = hp.load(folder)
    assert run.guarantees["personal"].epsilon == epsilon_of
    assert "privacy.json was changed after the run ended" in run.guarantees["personal"].warnings[0]
    assert run.statement().startswith(said), "what is said is computed"
    assert "DIFFERENCE: privacy.json was changed after the run ended." in run.statement()
    assert "privacy.json was changed after the run ended" in repr(run)
    manifest.write(folder)
    assert "DIFFERENCE: privacy.json, dp_fpl, epsilon 8, personal, epsilon is 0.1" in hp.load(folder).statement()
    (folder / "config.toml").write_text((folder / "config.toml").read_text().replace("epsilon = 8.0", "epsilon = 0.1"))
    assert "privacy.epsilon was 8.0 and is 0.1" in hp.load(folder).statement()
    for name in ("partition.json", "identity.json"):
        (folder / name).unlink()
    assert hp.load(folder).guarantees["personal"].epsilon == 0.1, "where nothing can be computed it is only read"


def test_a_run_killed_in_a_round_that_is_charged_is_no_edited_one(folder):
    for name in ("summary.json", "privacy.json", "manifest.json"):
        (folder / name).unlink()
    lines = (folder / "records.jsonl").read_text().splitlines()
    (folder / "records.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert json.loads(lines[-2])["arm"] == json.loads(lines[-1])["arm"]
    assert verify(folder).is_consistent, verify(folder).differences
    edit_last = json.loads(lines[-2])
    edit_last["epsilon"]["personal"] /= 2
    (folder / "records.jsonl").write_text("\n".join([*lines[:-2], json.dumps(edit_last)]) + "\n")
    assert verify(folder).differences


def test_a_run_of_an_older_version_is_checked_as_far_as_it_is_on_record(folder):
    for name in ("identity.json", "manifest.json"):
        (folder / name).unlink()
    edit(folder / "summary.json", lambda values: values.pop("identity"))
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    for line in lines:
        del line["identity"]
        line["clients"] = [[int(name[-1])] * 2 for name in line["clients"]]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = verify(folder)
    assert found.is_consistent, found.differences
    assert found.not_recorded == ["hashes not recorded", "identity not recorded"]
    assert not found.digest
    edit(folder / "summary.json", smaller_epsilon)
    told(folder, "epsilon is 0.1", rewritten=False)
    (folder / "partition.json").unlink()
    assert "sizes of the clients are not recorded" in verify(folder).not_recorded[-1]


def test_a_run_that_has_not_ended_and_one_with_noisy_accuracies(tmp_path):
    made = train(tmp_path / "run", tmp_path / "cache", evaluation={"metrics_epsilon": 5.0}, references=[])
    assert verify(made).is_consistent, verify(made).differences
    edit(made / "privacy.json", lambda values: values["evaluation"]["guarantee"].update(epsilon=1.0))
    told(made, r"privacy\.json, evaluation, guarantee, epsilon is 1\.0")
    for name in ("summary.json", "privacy.json", "manifest.json"):
        (made / name).unlink()
    assert "privacy.json is not there: the run has not ended" in verify(made).not_recorded


def test_server_and_clients_of_a_federation_are_checked_too(tmp_path):
    deployed = Deployment({**TOY, "training": {"num_rounds": 2}}, tmp_path)
    deployed.serve()
    for name in ("server", *NAMES):
        found = verify(deployed.folder(name))
        assert found.is_consistent, (name, found.differences)
        assert found.digest
    edit(deployed.folder("server") / "privacy.json", smaller_guarantee)
    told(deployed.folder("server"), "personal, epsilon is 0.1")
    (arm,) = guarantees(deployed.folder("server"))
    assert arm["audiences"]["personal"]["epsilon"] > 0.1, "`federation status` computes it"
    path = deployed.folder("ann") / "ledger.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    told(deployed.folder("ann"), "computed")


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
@pytest.mark.parametrize("delta", [1e-5, 1e-13, 1e-40, 1e-99])
@pytest.mark.parametrize("release", [(1.0, 0.05, 40), (20.0, 1.0, 100), (0.8, 0.5, 3), (2.0, 0.3, 5000)])
def test_true_claims_are_confirmed_and_no_smaller_ones(relation, delta, release):
    """Also below the delta at which the losses that dp_accounting composes are rounding alone."""
    z, prob, steps = release
    parts = (GaussianReleases(num_steps=steps, noise_multiplier=z, sampling_prob=prob),)
    claim = epsilon(parts, delta=delta, relation=relation)
    assert is_confirmed(claim, parts, delta, relation)
    assert not is_confirmed(0.9 * claim - 0.01, parts, delta, relation)


@pytest.fixture(scope="module")
def with_prior(tmp_path_factory):
    """A run of class statistics with a class prior, whose data are gone."""
    root = tmp_path_factory.mktemp("statistics")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metric, "LEAST_CLASSES", 6)
        public = hp.make_metric(
            backbone="toy", data="toy", runtime={"cache_dir": str(root)}, out=root / "metric.safetensors"
        )
    method = {"name": "class_statistics", "metric": str(public), "class_prior": 3.0}
    return train(root / "run", root / "cache", method=method, training={"num_rounds": 1})


def test_a_client_s_file_of_class_statistics_has_its_prior_and_says_that_its_classes_are_public(with_prior, tmp_path):
    folder = shutil.copytree(with_prior, tmp_path / "copy")
    for client in range(3):
        prompt = hp.load_prompt(folder, client=client)
        own = {prompt.classes[at] for at in prompt.tensors["log_prior"].nonzero().flatten()}
        assert len(own) == 2
        assert prompt.privacy.endswith(CLASSES_DECLARED)
    assert hp.verify(folder).is_consistent, hp.verify(folder).differences

    def hush(header, tensors):
        header["privacy"] = header["privacy"].removesuffix(CLASSES_DECLARED)

    rewrite_prompt(folder / "prompts" / "client-001.safetensors", hush)
    told(folder, r"client-001\.safetensors shows the client's classes and does not say")


def test_a_prompt_of_other_settings_or_of_another_arm_is_told(folder):
    def claim(header, tensors):
        header["settings"]["rank"], header["arm"] = 1, "PromptFL"

    rewrite_prompt(folder / "prompts" / "global.safetensors", claim)
    told(folder, r"global\.safetensors, settings, rank is 1, computed: 2", r"is of the arm 'PromptFL', not 'dp_fpl")
