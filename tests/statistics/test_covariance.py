"""A task's own spread within classes: what is learned of it, and that noise is never taken for it."""

import torch

from hushprompt.statistics.covariance import own_precision


def test_without_noise_it_is_the_inverse_of_the_spread_and_with_nothing_but_noise_the_identity():
    root, noise = torch.randn(2, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    identity = torch.eye(20, dtype=torch.float64)
    spread = 0.5 * identity + root @ root.T / 20
    torch.testing.assert_close(own_precision(90 * spread, 90, 0.0, 0.7), 0.7 * torch.linalg.inv(spread))
    torch.testing.assert_close(own_precision(90 * spread + 1e6 * noise, 90, 1e6, 0.7), identity)
    for std in (0.1, 1.0, 10.0):  # never further than the noise leaves room for
        found = own_precision(90 * spread + std * noise, 90, std, 0.7)
        assert torch.linalg.eigvalsh(found).min() > 0
        torch.testing.assert_close(found, found.T)
