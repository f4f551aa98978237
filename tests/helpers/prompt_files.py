"""Prompt files of any method on the toy backbone, without a training."""

import numpy as np
import torch

from helpers.runs import TOY
from hushprompt.config import parse as configs
from hushprompt.federation.planning import plan_arms
from hushprompt.federation.setup import client_sizes, declared_classes, load_model, make_partition
from hushprompt.methods.class_statistics import OwnClasses
from hushprompt.runs.prompts import write_prompts


def written(method, folder, **sections):
    """Write the prompt files of a method's start; return the arm, the model and both states."""
    config = configs.parse({**TOY, "method": method, **sections})
    dataset = config.data.load()
    partition = make_partition(config, dataset)
    arm = plan_arms(config, client_sizes(partition), declared_classes(config, dataset.class_names))[-1]
    model = load_model(config, dataset, [arm])
    shared, personal = arm.method.init(model, np.random.default_rng(0))
    if isinstance(personal, OwnClasses):
        personal = OwnClasses(torch.tensor([False, True, True, False, False, False]))
    names = partition.client_names
    write_prompts(folder, model, arm, shared, {1: personal}, backbone=config.backbone, client_names=names)
    return arm, model, shared, personal
