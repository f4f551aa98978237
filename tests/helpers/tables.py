"""Pictures of two classes at two clients, listed in a table, and a config of it that trains in a blink."""

import numpy as np
from PIL import Image

CLIENTS = {"north": range(4), "south": range(4, 8)}


def picture(path, number, kind="png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, kind)


def write_table(folder, clients=CLIENTS):
    """Eight pictures of each of two classes, and who has which."""
    rows = ["path,label,client,split"]
    for label, name in enumerate(("cat", "dog")):
        for number in range(8):
            if not (folder / f"{name}{number}.png").exists():
                picture(folder / f"{name}{number}.png", 10 * label + number)
            holder = next(client for client, numbers in clients.items() if number in numbers)
            rows.append(f"{name}{number}.png,{name},{holder},{'test' if number % 4 == 3 else 'train'}")
    (folder / "clients.csv").write_text("\n".join(rows) + "\n")
    return folder


def values(file, **privacy):
    return {
        "backbone": {"name": "toy"},
        "data": {"name": "table", "file": str(file)},
        "partition": {"name": "by_client"},
        "sampling": {"name": "poisson", "sampling_prob": 0.5},
        "method": {"name": "dp_fpl", "num_ctx": 2, "rank": 1},
        "privacy": {"epsilon": 4.0, "delta": 1e-3, "noise_source": "seeded", **privacy},
        "training": {"num_rounds": 3},
        "references": [],
    }
