"""The public names: what `import hushprompt` offers, what type checkers see of it, and what it costs."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hushprompt
from helpers.plugins import plug_in

NAMES = [
    *["ClassMeans", "ClassStatistics", "ConfigError", "DPFPL", "DPFPLReleased", "DataError", "EvaluationConfig"],
    *["FeaturesConfig", "FedCLIP", "FedOTP", "FedPGP", "Guarantee", "HushpromptError", "LeastSquares", "LinearProbe"],
    *["LinkError", "LocalOnly", "Noise", "Prediction", "PrivacyConfig", "PrivacyError", "Prompt", "PromptFL"],
    *["PromptFolio", "ProtocolError", "RandomPrompt", "Reference", "ResumeError", "Run", "RunConfig", "RuntimeConfig"],
    *["TrainingConfig", "ZeroShot", "__version__", "audit", "calibrate", "compare", "data_info", "epsilon", "export"],
    *["export_features", "federation", "fetch", "figure", "load", "load_prompt", "make_metric", "partition", "plan"],
    *["predict", "register", "report", "resume", "run", "secret_exposures", "serve", "sweep", "verify"],
]
HEAVY = {"torch", "numpy", "scipy", "dp_accounting", "pandas", "matplotlib", "rich"}


def test_the_public_names_are_these_and_sorted():
    assert hushprompt.__all__ == sorted(hushprompt.__all__) == sorted(NAMES)
    assert dir(hushprompt) == hushprompt.__all__


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there_and_says_what_it_is(name):
    value = getattr(hushprompt, name)
    assert isinstance(value, str) or inspect.getdoc(value)


def test_type_checkers_see_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(hushprompt.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert {name: module.removeprefix("hushprompt.") for name, module in seen.items() if name != "federation"} == (
        hushprompt._MODULE_OF
    )


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'hushprompt' has no attribute 'runn'"):
        _ = hushprompt.runn
    with pytest.raises(AttributeError, match=r"module 'hushprompt\.federation' has no attribute 'serv'"):
        _ = hushprompt.federation.serv


def test_importing_the_package_imports_nothing_heavy_also_with_a_plug_in_that_does(tmp_path):
    path = plug_in(tmp_path, "heavy-package", "heavy_package", "import torch\n", {"methods": {"heavy": ":Heavy"}})
    code = (
        "import sys; before = set(sys.modules); import hushprompt as hp; new = set(sys.modules) - before;"
        "assert len(new) < 40, new;"  # those of typing, which take some milliseconds
        "dir(hp); from hushprompt.registry import METHODS; assert 'heavy' in METHODS.names();"
        f"assert not {HEAVY!r} & set(sys.modules), sorted(sys.modules)"
    )
    places = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
