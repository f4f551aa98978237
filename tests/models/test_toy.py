import numpy as np
import torch

from hushprompt.models.toy import Toy


def test_a_feature_depends_on_its_own_image_of_whatever_size():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((8, 8), (32, 32), (5, 40), (32, 32))]
    model = Toy().load()
    for encode in (model.encode_images, model.encode_patches):
        together, alone = encode(images), torch.cat([encode([image]) for image in images])
        torch.testing.assert_close(together, alone)
        assert (together[1] != together[3]).any()
