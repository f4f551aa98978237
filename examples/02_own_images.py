"""Train on a folder of images, one folder for each class; without a folder, on drawings that are written first.

python examples/02_own_images.py my_images
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from rich import print

import hushprompt as hp


def write_drawings(root: Path, num_classes: int = 6) -> None:
    """Write some of the built-in drawings as ROOT/CLASS/NUMBER.png."""
    drawings = hp.data_info("emoji100").dataset
    split = drawings.splits["train"]
    for index in np.flatnonzero(split.labels < num_classes):
        file = root / drawings.class_names[split.labels[index]].replace(" ", "_") / f"{index:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(split.read(np.array([index]))[0]).save(file)


def main(root: Path, **sections) -> hp.Run:
    """Look at the images, see who would get which, what it would guarantee, and train."""
    print(f"{', '.join(hp.data_info('folder', root=root).dataset.class_names)}")
    settings = {
        "data": {"name": "folder", "root": root},
        "partition": {"name": "dirichlet", "num_clients": 3, "alpha": 0.5},
        "method": {"rank": 4},  # the preset's method with another rank
        "privacy": {"epsilon": 8.0, "delta": 1e-3},
        "references": ["zero_shot"],
        **sections,
    }
    print(hp.partition(**settings).by_split["train"])  # clients x classes
    print(hp.plan(**settings).statement())
    run = hp.run(**settings)  # for photographs: backbone={"name": "open_clip"}
    print(run.table())
    return run


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("my_images")
    if not folder.exists():
        write_drawings(folder)
    main(folder)
