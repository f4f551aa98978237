import numpy as np
import pytest

from hushprompt.data.partitions.by_class import DisjointClasses
from hushprompt.data.sets.toy import ToyData
from hushprompt.errors import ConfigError
from hushprompt.evaluation.base_to_new import base_images, num_base_classes


@pytest.mark.parametrize(
    ("wanted", "total", "count"), [(0.5, 100, 50), (0.5, 101, 51), (0.1, 10, 1), (0.1, 30, 3), (60, 100, 60), (1, 2, 1)]
)
def test_a_fraction_or_a_count_of_the_first_classes(wanted, total, count):
    assert num_base_classes(float(wanted), total) == count


@pytest.mark.parametrize(
    ("wanted", "message"), [(10, "both"), (12, "both"), (0.99, "both"), (2.5, "a fraction below 1 or a whole number")]
)
def test_a_side_without_classes_is_refused(wanted, message):
    with pytest.raises(ConfigError, match=message):
        num_base_classes(float(wanted), 10)


def test_clients_get_all_base_images_and_no_other():
    dataset = ToyData().load()
    base = base_images(dataset, 3)
    assert base.dataset.class_names == ("ant", "bee", "cat")
    rule = DisjointClasses(num_clients=3)
    partition = base.in_whole(rule.partition(base.dataset, np.random.default_rng(0)))
    for split in ("train", "test"):
        labels = dataset.splits[split].labels
        held = np.sort(np.concatenate([client.indices[split] for client in partition.clients]))
        assert held.tolist() == np.flatnonzero(labels < 3).tolist()
        for client in partition.clients:
            assert set(labels[client.indices[split]]) == set(client.classes)
    places = base.places["test"]
    some = np.array([4, 0])
    for image, same in zip(
        base.dataset.splits["test"].read(some), dataset.splits["test"].read(places[some]), strict=True
    ):
        assert np.array_equal(image, same)
