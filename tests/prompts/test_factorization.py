import numpy as np
import pytest
import torch

from hushprompt.prompts.factorization import factorize, orthonormal_columns


def local_prompt(seed=0, t=6, e=9):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 0.02, size=(t, e))).float()


def split(local, rank, form, power_iterations=1, seed=1):
    return factorize(local, rank, form=form, power_iterations=power_iterations, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("form", ["projection", "orthonormal", "svd"])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_factors_and_residual_give_the_prompt_back(form, rank):
    local = local_prompt()
    factors = split(local, rank, form)
    torch.testing.assert_close(factors.u @ factors.v + factors.residual, local, rtol=0, atol=1e-6)
    torch.testing.assert_close(factors.u.T @ factors.u, torch.eye(rank), rtol=0, atol=1e-5)


def test_svd_is_the_best_approximation_of_its_rank():
    local = local_prompt()
    best = torch.linalg.svdvals(local)[2:].norm()
    torch.testing.assert_close(split(local, 2, "svd").residual.norm(), best, rtol=1e-4, atol=0)


def test_projection_nears_the_svd_with_more_power_iterations_and_leaves_an_orthogonal_residual():
    local = local_prompt()
    best = split(local, 2, "svd").residual.norm()
    one, many = (split(local, 2, "projection", power_iterations=n) for n in (1, 200))
    assert best <= many.residual.norm() <= one.residual.norm()
    torch.testing.assert_close(many.residual.norm(), best, rtol=1e-3, atol=0)
    torch.testing.assert_close(one.u.T @ one.residual, torch.zeros(2, 9), rtol=0, atol=1e-7)


def test_two_orthonormal_factors_have_a_product_of_norm_root_rank():
    factors = split(local_prompt(), 4, "orthonormal")
    torch.testing.assert_close(factors.v @ factors.v.T, torch.eye(4), rtol=0, atol=1e-5)
    torch.testing.assert_close((factors.u @ factors.v).norm(), torch.tensor(2.0), rtol=1e-5, atol=0)


def test_the_start_comes_from_the_given_stream_alone():
    local = local_prompt()
    same, again, other = (split(local, 2, "projection", seed=s) for s in (1, 1, 2))
    assert torch.equal(same.u, again.u)
    assert not torch.allclose(same.u, other.u)


def test_orthonormal_columns_span_the_same_space_in_order():
    matrix = local_prompt(2, 7, 3)
    q = orthonormal_columns(matrix)
    for column in range(1, 4):
        projected = q[:, :column] @ (q[:, :column].T @ matrix[:, column - 1])
        torch.testing.assert_close(projected, matrix[:, column - 1], rtol=1e-4, atol=1e-7)
