"""A sweep on the toy model, in files of its own."""

import pytest
import tomli_w


@pytest.fixture
def toy_sweep(tmp_path, toy_values):
    """Give a function that writes a sweep of two methods and two seeds and gives its path."""

    def write(num_rounds=3, promptfl_ctx=4):
        (tmp_path / "base.toml").write_text(tomli_w.dumps({**toy_values, "training": {"num_rounds": num_rounds}}))
        (tmp_path / "toy.toml").write_text(f"""
            base = "base.toml"
            settings = {{ runtime = {{ cache_dir = "{tmp_path / "cache"}" }} }}
            [axes]
            seed = [1, 2]
            [axes.method]
            dp_fpl = {{}}
            promptfl = {{ method = {{ name = "promptfl", num_ctx = {promptfl_ctx} }} }}
        """)
        return tmp_path / "toy.toml"

    return write
