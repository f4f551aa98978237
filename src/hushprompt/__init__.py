"""hushprompt: private, personal, federated prompt learning of frozen vision-language models.

    import hushprompt as hp

    run = hp.run(method=hp.DPFPL(rank=4), privacy=hp.PrivacyConfig(epsilon=8))
    run.table()

Nothing is imported before it is used: `import hushprompt` takes some milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hushprompt import federation as federation
    from hushprompt.api.data import data_info as data_info
    from hushprompt.api.data import fetch as fetch
    from hushprompt.api.data import partition as partition
    from hushprompt.api.exporting import export as export
    from hushprompt.api.features import export_features as export_features
    from hushprompt.api.features import make_metric as make_metric
    from hushprompt.api.many_runs import compare as compare
    from hushprompt.api.many_runs import figure as figure
    from hushprompt.api.many_runs import report as report
    from hushprompt.api.many_runs import sweep as sweep
    from hushprompt.api.measuring import Noise as Noise
    from hushprompt.api.measuring import audit as audit
    from hushprompt.api.measuring import calibrate as calibrate
    from hushprompt.api.measuring import epsilon as epsilon
    from hushprompt.api.measuring import secret_exposures as secret_exposures
    from hushprompt.api.measuring import verify as verify
    from hushprompt.api.predicting import predict as predict
    from hushprompt.api.run import Run as Run
    from hushprompt.api.run import load as load
    from hushprompt.api.serve import serve as serve
    from hushprompt.api.training import plan as plan
    from hushprompt.api.training import resume as resume
    from hushprompt.api.training import run as run
    from hushprompt.config.schema import EvaluationConfig as EvaluationConfig
    from hushprompt.config.schema import Reference as Reference
    from hushprompt.config.schema import RunConfig as RunConfig
    from hushprompt.config.schema import RuntimeConfig as RuntimeConfig
    from hushprompt.config.schema import TrainingConfig as TrainingConfig
    from hushprompt.errors import ConfigError as ConfigError
    from hushprompt.errors import DataError as DataError
    from hushprompt.errors import HushpromptError as HushpromptError
    from hushprompt.errors import LinkError as LinkError
    from hushprompt.errors import PrivacyError as PrivacyError
    from hushprompt.errors import ProtocolError as ProtocolError
    from hushprompt.errors import ResumeError as ResumeError
    from hushprompt.features.cache import FeaturesConfig as FeaturesConfig
    from hushprompt.methods.class_means import ClassMeans as ClassMeans
    from hushprompt.methods.class_statistics import ClassStatistics as ClassStatistics
    from hushprompt.methods.dp_fpl import DPFPL as DPFPL
    from hushprompt.methods.dp_fpl_released import DPFPLReleased as DPFPLReleased
    from hushprompt.methods.fedclip import FedCLIP as FedCLIP
    from hushprompt.methods.fedotp import FedOTP as FedOTP
    from hushprompt.methods.fedpgp import FedPGP as FedPGP
    from hushprompt.methods.least_squares import LeastSquares as LeastSquares
    from hushprompt.methods.linear_probe import LinearProbe as LinearProbe
    from hushprompt.methods.local_only import LocalOnly as LocalOnly
    from hushprompt.methods.promptfl import PromptFL as PromptFL
    from hushprompt.methods.promptfolio import PromptFolio as PromptFolio
    from hushprompt.methods.random_prompt import RandomPrompt as RandomPrompt
    from hushprompt.methods.zero_shot import ZeroShot as ZeroShot
    from hushprompt.privacy.config import PrivacyConfig as PrivacyConfig
    from hushprompt.privacy.guarantee import Guarantee as Guarantee
    from hushprompt.registry import register as register
    from hushprompt.serving.loading import load_prompt as load_prompt
    from hushprompt.serving.prompt import Prediction as Prediction
    from hushprompt.serving.prompt import Prompt as Prompt

    __version__: str

_MODULES = {
    "api.data": ("data_info", "fetch", "partition"),
    "api.exporting": ("export",),
    "api.features": ("export_features", "make_metric"),
    "api.many_runs": ("compare", "figure", "report", "sweep"),
    "api.measuring": ("Noise", "audit", "calibrate", "epsilon", "secret_exposures", "verify"),
    "api.predicting": ("predict",),
    "api.run": ("Run", "load"),
    "api.serve": ("serve",),
    "api.training": ("plan", "resume", "run"),
    "config.schema": ("EvaluationConfig", "Reference", "RunConfig", "RuntimeConfig", "TrainingConfig"),
    "errors": (
        "ConfigError", "DataError", "HushpromptError", "LinkError", "PrivacyError", "ProtocolError", "ResumeError",
    ),
    "features.cache": ("FeaturesConfig",),
    "methods.class_means": ("ClassMeans",),
    "methods.class_statistics": ("ClassStatistics",),
    "methods.dp_fpl": ("DPFPL",),
    "methods.dp_fpl_released": ("DPFPLReleased",),
    "methods.fedclip": ("FedCLIP",),
    "methods.fedotp": ("FedOTP",),
    "methods.fedpgp": ("FedPGP",),
    "methods.least_squares": ("LeastSquares",),
    "methods.linear_probe": ("LinearProbe",),
    "methods.local_only": ("LocalOnly",),
    "methods.promptfl": ("PromptFL",),
    "methods.promptfolio": ("PromptFolio",),
    "methods.random_prompt": ("RandomPrompt",),
    "methods.zero_shot": ("ZeroShot",),
    "privacy.config": ("PrivacyConfig",),
    "privacy.guarantee": ("Guarantee",),
    "registry": ("register",),
    "serving.loading": ("load_prompt",),
    "serving.prompt": ("Prediction", "Prompt"),
}  # fmt: skip
"""Where the public names are defined. The imports above say the same to type checkers; a test compares them."""
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted([*_MODULE_OF, "__version__", "federation"])


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"hushprompt.{_MODULE_OF[name]}"), name)
    elif name == "federation":
        value = importlib.import_module("hushprompt.federation")
    elif name == "__version__":
        value = importlib.import_module("importlib.metadata").version("hushprompt")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names alone."""
    return __all__
