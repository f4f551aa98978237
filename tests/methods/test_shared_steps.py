"""Methods whose shared step has more to it than the released gradient, through the whole loop."""

import pytest
import torch
from safetensors.torch import load_file

from helpers.runs import Silent
from hushprompt.config import parse as configs
from hushprompt.federation.simulate import run


@pytest.fixture
def global_prompt(toy_values, tmp_path):
    """Give a function that trains without noise and gives the global prompt."""

    def train(method, sampling=None, **training):
        noise_at = training.pop("noise_at", "server")
        values = {
            **toy_values,
            "method": {"num_ctx": 4, **method},
            "sampling": sampling or {"name": "poisson", "sampling_prob": 0.5},
            "privacy": {"epsilon": float("inf"), "delta": 1e-3, "noise_at": noise_at},
            "training": {"num_rounds": 3, **training},
            "references": [],
            "runtime": {"cache_dir": str(tmp_path / "cache")},
        }
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        run(configs.parse(values), folder, Silent())
        return load_file(folder / "prompts" / "global.safetensors")["context"]

    return train


@pytest.mark.parametrize("name", ["fedpgp", "promptfolio", "promptfl"])
def test_it_does_not_matter_who_would_add_the_noise(global_prompt, name):
    torch.testing.assert_close(*(global_prompt({"name": name}, noise_at=where) for where in ("server", "client")))


def test_the_proximal_weight_acts_where_clients_take_local_steps_and_only_there(global_prompt):
    three_steps = {"name": "poisson", "sampling_prob": 0.5, "steps_per_round": 3}
    without, with_weight = ({"name": "promptfl", "proximal_weight": weight} for weight in (0.0, 5.0))
    same = [global_prompt(method) for method in (without, with_weight)]
    assert torch.equal(*same)
    local = {"local_steps": 3, "noise_at": "client"}
    free, held = (global_prompt(method, three_steps, **local) for method in (without, with_weight))
    start = global_prompt(without, num_rounds=0)
    assert 0 < float((held - start).norm()) < 0.95 * float((free - start).norm())
