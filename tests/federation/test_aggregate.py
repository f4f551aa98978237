import torch

from hushprompt.federation.aggregate import num_bytes, pack, unpack_sum
from hushprompt.methods.base import Upload
from hushprompt.privacy.clipping import ClippedSum


def test_the_sum_over_clients_is_what_arrives():
    uploads = [Upload(ClippedSum(torch.full((2, 3), float(k)), 0.5)) for k in range(3)]
    total = unpack_sum([pack(upload) for upload in uploads])
    assert torch.equal(total.value, torch.full((2, 3), 3.0))
    assert total.sensitivity == 0.5


def test_a_method_that_shares_nothing_sends_nothing():
    assert unpack_sum([pack(Upload(None)), pack(Upload(None))]) is None
    assert num_bytes(None) == 0


def test_a_message_is_as_large_as_its_tensor():
    assert num_bytes(ClippedSum(torch.zeros(16, 512), 1.0)) == 16 * 512 * 4
