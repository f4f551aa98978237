import pytest
import torch
from safetensors.torch import save_file

from helpers.runs import Silent, fresh
from hushprompt.errors import DataError
from hushprompt.federation.simulate import run
from hushprompt.runs.prompts import read_prompt


def test_a_prompt_file_is_read_back_with_what_it_says_of_itself(toy_config, tmp_path):
    folder = fresh(tmp_path)
    run(toy_config, folder, Silent())
    (everybodys, _), (own, tensors) = (
        read_prompt(folder / "prompts" / f"{name}.safetensors") for name in ("global", "client-001")
    )
    assert everybodys.method == own.method == "dp_fpl"
    assert (everybodys.client_id, own.client_id) == (None, 1)
    assert own.rank == toy_config.method.rank
    assert len(own.class_names) == toy_config.data.num_classes
    assert "epsilon = " in own.privacy
    assert "accountant" in own.privacy
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize("metadata", [{}, {"hushprompt": "{}"}, {"hushprompt": '{"format": "hushprompt prompt 99"}'}])
def test_what_is_no_prompt_of_this_version_is_refused(tmp_path, metadata):
    save_file({"context": torch.zeros(2)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(DataError, match=r"a\.safetensors (is no prompt file|has the format 'hushprompt prompt 99')"):
        read_prompt(tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="is no prompt file"):
        read_prompt(tmp_path / "missing.safetensors")
