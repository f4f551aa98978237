"""Run folders as a run leaves them, with scores of the test's choice and no training."""

import dataclasses

from hushprompt import files
from hushprompt.config import parse as configs
from hushprompt.registry import METHODS
from hushprompt.runs import records
from hushprompt.runs.records import ArmSummary

METHOD_TABLES = {
    "zero_shot": {"name": "zero_shot"},
    "promptfl": {"name": "promptfl", "num_ctx": 4, "optimizer": {"learning_rate": 0.8}},
    "dp_fpl": {"name": "dp_fpl", "num_ctx": 4, "rank": 2},
}


def write_run(folder, values, scores):
    """Write a run of `values` whose arms have `scores`: one pair of local and neighbor for each arm."""
    config = configs.parse(values)
    arms = [*((r.method, r.epsilon) for r in config.references), (config.method, None)]
    summaries, entries = [], []
    for (method, epsilon), (local, neighbor) in zip(arms, scores, strict=True):
        privacy = config.privacy if epsilon is None else dataclasses.replace(config.privacy, epsilon=epsilon)
        name = METHODS.name_of(method)
        summaries.append(
            ArmSummary(
                arm=name, method=name, title=method.title, epsilon=privacy.epsilon if method.channels else None,
                delta=privacy.delta, audience=str(privacy.audience), local=local, neighbor=neighbor,
                harmonic_mean=2 * local * neighbor / (local + neighbor), worst_client=local / 2, calibration_error=0.1,
                seconds=1.0, seed=config.seed, num_rounds=config.training.num_rounds, per_client=[], per_class=[],
            )
        )  # fmt: skip
        guarantee = {
            "delta": privacy.delta, "privacy_unit": "example", "neighboring_relation": privacy.neighboring_relation,
            "sampling": "Poisson sampling with probability 0.5", "accountant": "PLD",
        }  # fmt: skip
        entries.append({"arm": name, "audiences": {"personal": guarantee, "public": guarantee}})
    files.write_text(folder / "config.toml", config.to_toml())
    records.write_json(folder / "privacy.json", {"arms": entries})
    provenance = {"hushprompt": "0.1.0", "config_identity": config.identity()}
    records.write_json(folder / "summary.json", {"arms": summaries, "provenance": provenance})
    return folder


def with_settings(values, method, epsilon=8.0, seed=1, **method_fields):
    """Give a config of one arm."""
    table = {**METHOD_TABLES[method], **method_fields}
    return {
        **values,
        "seed": seed,
        "method": table,
        "references": [],
        "privacy": {**values["privacy"], "epsilon": epsilon},
    }
