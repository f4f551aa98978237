"""A small list of questions on pictures, as JSONL: two pictures of each patient, two questions on each picture."""

import json

import numpy as np
from PIL import Image


def write(folder, clients, num_patients=4):
    """Write pictures of noise and their list; give its path."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(0), []
    for client in clients:
        for at in range(2 * num_patients):
            name = f"{client}-{at}.png"
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
            about = {"image": name, "client": client, "group": f"{client}-{at // 2}"}
            for asked, answer in (("what is it", ["ox", "the dog"][at % 2]), ("is it the ox or the dog", "cat")):
                lines.append({**about, "question": asked, "answers": [answer]})
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
