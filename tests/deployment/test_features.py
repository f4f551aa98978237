"""A federation whose sites have embeddings only."""

import pytest

import hushprompt as hp
from helpers.deployments import NAMES, Deployment
from helpers.runs import TOY, run_with
from hushprompt.config import parse as configs
from hushprompt.deployment.config import load_client
from hushprompt.errors import ConfigError, ProtocolError

SEEDED = {**TOY, "privacy": {**TOY["privacy"], "noise_source": "seeded"}, "training": {"num_rounds": 2}}


@pytest.fixture
def sections(tmp_path):
    config = configs.parse({**TOY, "runtime": {"cache_dir": str(tmp_path / "cache")}})
    path = str(hp.export_features(config, out=tmp_path / "toy.npz", progress=False))
    return {"data": {"name": "features", "file": path}, "backbone": {"name": "features", "text_features": path}}


def test_it_gives_the_numbers_of_a_simulation(tmp_path, sections):
    values = {**SEEDED, **sections, "method": {"name": "fedclip"}}
    deployed = Deployment(values, tmp_path)
    config = configs.parse(values)
    for name in NAMES:
        deployed.restart(name, backbone=config.backbone, data=config.data)
    deployed.serve()
    assert deployed.reasons() == []
    folder, _, _ = run_with(values, tmp_path)
    (left,) = deployed.prompts().values()
    (right,) = (hp.load_prompt(folder / "prompts").tensors,)
    assert all((left[name] - right[name]).abs().max() < 1e-6 for name in right)


def test_a_prompt_method_is_refused_before_anybody_is_asked(tmp_path, sections):
    deployed = Deployment({**SEEDED, **sections}, tmp_path)
    with pytest.raises(ConfigError, match="DP-FPL trains or encodes prompts, and this backbone has no text tower"):
        deployed.serve()
    assert deployed.lines("server", "ledger.jsonl") == []


def test_a_model_in_files_is_the_owners_choice_and_lies_beside_its_config(tmp_path, sections):
    deployed = Deployment({**SEEDED, **sections, "method": {"name": "fedclip"}}, tmp_path)
    with pytest.raises(ProtocolError, match="0 of 3 clients joined"):
        deployed.serve()
    assert "which reads or fetches files" in " ".join(map(str, deployed.reasons()))
    (tmp_path / "client.toml").write_text(
        '[client]\nname = "ann"\nstore = "store"\n[owner]\nmax_epsilon = 1.0\nmax_delta = 0.01\n'
        '[data]\nname = "features"\nfile = "a.npz"\ntest_file = "b.npz"\n'
        '[backbone]\nname = "features"\ntext_features = "t.npz"\n'
    )
    loaded = load_client(tmp_path / "client.toml")
    found = (loaded.data.file, loaded.data.test_file, loaded.backbone.text_features)
    assert found == tuple(str(tmp_path / name) for name in ("a.npz", "b.npz", "t.npz"))
