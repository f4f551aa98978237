from types import SimpleNamespace

import pytest
import torch

from hushprompt.models import fixed_map
from hushprompt.models.fixed_map import FixedMap, against


@pytest.mark.parametrize("shape", [(3,), (1, 1), (640,), (32, 20), (0,)])
@pytest.mark.parametrize("sizes", [(128, 512), (512, 128), (5, 7)])
def test_is_the_product(shape: tuple[int, ...], sizes: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(*shape, sizes[0], generator=generator), torch.randn(*sizes, generator=generator)
    for bias in (None, torch.randn(sizes[1], generator=generator)):
        product = FixedMap(weight, bias)(x)
        assert product.shape == (*shape, sizes[1])
        expected = x.double() @ weight.double() + (0.0 if bias is None else bias)
        torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=1e-4)


def test_rows_do_not_depend_on_each_other() -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(40, 16, generator=generator), torch.randn(16, 24, generator=generator)
    both, alone = FixedMap(weight)(x), FixedMap(weight)(x[:8])
    torch.testing.assert_close(both[:8], alone, rtol=1e-6, atol=1e-6)


def test_a_view_of_larger_weights_is_read_right() -> None:
    whole = torch.arange(48.0).view(6, 8)
    assert torch.equal(FixedMap(whole[:, 2:5])(torch.eye(6)), whole[:, 2:5])


def test_rows_that_change_are_multiplied_without_being_laid_out_wherever_they_lie() -> None:
    x, whole = torch.randn(40, 16).T, torch.randn(24, 80)
    for rows in (whole[:, :40], whole[:, 1:80:2], whole.T[:24, :24].T[:, :1].expand(-1, 40)):
        torch.testing.assert_close(against(x, rows).double(), x.double() @ rows.double().T, rtol=1e-5, atol=1e-4)


def test_other_precisions_and_machines_take_a_plain_product(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(4, 6), torch.randn(6, 3)
    assert torch.equal(FixedMap(weight.double())(x.double()), x.double() @ weight.double())
    monkeypatch.setattr(fixed_map.platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_reorder_linear_weight=None, _linear_pointwise=None))
    assert torch.equal(FixedMap(weight)(x), x @ weight)
    torch.testing.assert_close(FixedMap(weight, torch.ones(3))(x), x @ weight + 1)
    assert torch.equal(against(x, weight.T), x @ weight)
