import dataclasses
import json
from dataclasses import dataclass

import pytest
import torch

from helpers.runs import Silent
from hushprompt.config import parse as configs
from hushprompt.errors import ConfigError
from hushprompt.federation.simulate import run
from hushprompt.prompts.optimizer import Optimizer, with_schedule_steps

NUM_STEPS = 12


def trained(ours, theirs_class, scheduler_of=None, **settings):
    """Twelve steps with ours and with torch's optimizer and scheduler."""
    start = torch.tensor([1.0, -2.0, 0.5])
    leaf = start.clone().requires_grad_()
    theirs = theirs_class([leaf], **settings)
    scheduler = scheduler_of(theirs) if scheduler_of else None
    value, state = start, ours.init(start)
    for step in range(NUM_STEPS):
        grad = torch.tensor([0.3, -0.1, 2.0]) * (step - 1.5)
        leaf.grad = grad.clone()
        assert float(ours.rate(state.num_steps)) == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12, abs=1e-15)
        theirs.step()
        if scheduler is not None:
            scheduler.step()
        value, state = ours.step(value, grad, state)
    assert int(state.num_steps) == NUM_STEPS
    return value, leaf.detach()


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_sgd_is_torchs(momentum, nesterov, weight_decay):
    ours = Optimizer(learning_rate=0.1, momentum=momentum, is_nesterov=nesterov, weight_decay=weight_decay)
    settings = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    torch.testing.assert_close(*trained(ours, torch.optim.SGD, **settings))


@pytest.mark.parametrize(("name", "theirs"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_and_adamw_are_torchs(name, theirs, weight_decay):
    ours = Optimizer(name=name, learning_rate=0.1, weight_decay=weight_decay)
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": weight_decay}
    torch.testing.assert_close(*trained(ours, theirs, **settings), rtol=1e-5, atol=1e-6)


def cosine(optimizer, length, fraction=0.0):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=length, eta_min=0.1 * fraction)


def warmed_up(optimizer, steps, then):
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / steps, total_iters=steps - 1)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [linear, then], milestones=[steps])


SCHEDULES = {
    "cosine": ({"schedule": "cosine", "schedule_steps": 12}, lambda o: cosine(o, 12)),
    "cosine to a tenth": (
        {"schedule": "cosine", "schedule_steps": 12, "final_fraction": 0.1},
        lambda o: cosine(o, 12, 0.1),
    ),
    "step": (
        {"schedule": "step", "step_length": 5, "step_factor": 0.5},
        lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=5, gamma=0.5),
    ),
    "warm-up": ({"warmup_steps": 4}, lambda o: torch.optim.lr_scheduler.LinearLR(o, 1 / 4, total_iters=3)),
    "warm-up, then cosine": (
        {"schedule": "cosine", "schedule_steps": 12, "warmup_steps": 4},
        lambda o: warmed_up(o, 4, cosine(o, 8)),
    ),
}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("which", list(SCHEDULES))
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")  # torch's own, from SequentialLR
def test_a_schedule_is_torchs(name, which):
    settings, scheduler_of = SCHEDULES[which]
    ours = Optimizer(name=name, learning_rate=0.1, momentum=0.9, weight_decay=0.05, **settings)
    if name == "sgd":
        theirs, their_settings = torch.optim.SGD, {"momentum": 0.9}
    else:
        theirs, their_settings = torch.optim.AdamW, {"betas": (0.9, 0.99)}
    value, expected = trained(ours, theirs, scheduler_of, lr=0.1, weight_decay=0.05, **their_settings)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_a_cosine_stays_down_where_the_run_goes_on():
    ours = Optimizer(learning_rate=0.1, schedule="cosine", schedule_steps=10, final_fraction=0.25)
    for steps in (10, 11, 25):
        assert float(ours.rate(torch.tensor(steps))) == pytest.approx(0.025)


@dataclass(frozen=True)
class TwoOptimizers:
    first: Optimizer
    second: Optimizer
    rank: int = 8


def test_the_run_tells_a_cosine_how_long_it_is():
    told, constant = Optimizer(schedule="cosine", schedule_steps=7), Optimizer()
    untold = Optimizer(schedule="cosine", warmup_steps=2)
    assert with_schedule_steps(TwoOptimizers(told, constant), 100) == TwoOptimizers(told, constant)
    got = with_schedule_steps(TwoOptimizers(untold, told), 100)
    assert got == TwoOptimizers(dataclasses.replace(untold, schedule_steps=100), told)
    with pytest.raises(ConfigError, match=r"schedule_steps must be > warmup_steps = 2, got 2"):
        with_schedule_steps(TwoOptimizers(untold, told), 2)
    with pytest.raises(ConfigError, match="outside a run"):
        untold.rate(torch.tensor(0))


def test_a_step_leaves_its_arguments_alone():
    optimizer, value = Optimizer(), torch.ones(2)
    state = optimizer.init(value)
    optimizer.step(value, torch.ones(2), state)
    assert torch.equal(value, torch.ones(2))
    assert torch.equal(state.first, torch.zeros(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"second_moment_decay": 1.0}, "second_moment_decay"),
        ({"final_fraction": 1.5}, "final_fraction"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"schedule": "step"}, "step_length must be > 0"),
        ({"schedule": "step", "step_length": 1, "step_factor": 2.0}, "step_factor"),
        ({"name": "adam", "is_nesterov": True}, "is_nesterov needs"),
        ({"momentum": 0.0, "is_nesterov": True}, "is_nesterov needs"),
        ({"schedule": "cosine", "schedule_steps": 3, "warmup_steps": 3}, "schedule_steps must be >"),
    ],
)
def test_a_useless_setting_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Optimizer(**settings)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_resumed_run_is_on_the_same_point_of_its_schedule(toy_values, tmp_path, name):
    optimizer = {"name": name, "learning_rate": 0.01, "schedule": "cosine", "warmup_steps": 1}
    method = {"name": "promptfl", "num_ctx": 4, "optimizer": optimizer}
    values = {**toy_values, "method": method, "references": [], "runtime": {"cache_dir": str(tmp_path / "cache")}}
    config, records = configs.parse(values), []
    for folder, stop in (("whole", None), ("stopped", 2)):
        (tmp_path / folder).mkdir()
        if stop:
            with pytest.raises(KeyboardInterrupt):
                run(config, tmp_path / folder, Silent(stop))
        run(config, tmp_path / folder, Silent())
        lines = (tmp_path / folder / "records.jsonl").read_text().splitlines()
        records.append([{**json.loads(line), "seconds": 0} for line in lines])
        assert (tmp_path / folder / "prompts" / "global.safetensors").exists()
    assert records[0] == records[1]
    prompts = [(tmp_path / folder / "prompts" / "global.safetensors").read_bytes() for folder in ("whole", "stopped")]
    assert prompts[0] == prompts[1]
