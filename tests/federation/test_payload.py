import torch

from hushprompt.federation.payload import average, average_gradients, num_bytes, pack, payload_kind, unpack_sum
from hushprompt.methods.base import NoState, Upload
from hushprompt.methods.context import ContextState
from hushprompt.privacy.clipping import ClippedSum
from hushprompt.prompts.optimizer import OptimizerState


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


def copy(value, num_steps):
    tensor = torch.tensor([[value, 2.0]])
    return ContextState(tensor, OptimizerState(torch.tensor(num_steps), 3 * tensor, 0 * tensor))


def test_copies_are_averaged_tensor_by_tensor_with_the_weights_of_the_cohort():
    start = copy(1.0, 4)
    mean = average([copy(2.0, 6), copy(5.0, 6)], [0.5, 0.25], start)  # a client of weight 0.25 failed
    assert mean.context.tolist() == [[1.0 + 0.5 * 1.0 + 0.25 * 4.0, 2.0]]
    assert mean.optimizer.first.tolist() == [[3 * 2.5, 6.0]]
    assert mean.optimizer.num_steps.item() == 6
    assert mean.optimizer.num_steps.dtype == start.optimizer.num_steps.dtype
    assert average([NoState()], [1.0], NoState()) == NoState()


def test_equal_copies_average_to_themselves_bit_by_bit():
    one = copy(torch.pi, 7)
    mean = average([one] * 3, [0.2, 0.3, 0.5], copy(0.1, 0))
    assert torch.equal(mean.context, one.context)


def test_a_failed_client_counts_as_a_zero_gradient():
    mean = average_gradients([torch.tensor([4.0]), torch.tensor([8.0])], [0.25, 0.25])
    assert mean.tolist() == [3.0]


def test_local_steps_send_copies_and_client_noise_sends_gradients():
    settings = [(1, "server"), (1, "client"), (2, "client"), (2, "server")]
    assert [str(payload_kind(*each)) for each in settings] == ["sums", "gradients", "copies", "copies"]


def test_a_copy_is_as_large_as_its_tensors():
    assert num_bytes(copy(1.0, 4)) == 3 * 2 * 4 + 8
