"""Collect and rasterize openly licensed drawings: OUT/images.npy (uint8 [n, 80, 80, 4]) and OUT/index.jsonl.

python drawings.py --node node_modules --clipart DIR --out build/drawings

`--node` is where `npm install` put the packages of package.json; `--clipart` is `usr/share/openclipart/svg` of the
unpacked Debian package openclipart-svg. Only Apache-2.0, MIT, CC BY and public-domain sources are read.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

SIZE = 80
LICENSES = {
    "noto": "Apache-2.0",
    "noto-v1": "Apache-2.0",
    "fxemoji": "CC-BY-4.0",
    "twemoji": "CC-BY-4.0",
    "streamline-emojis": "CC-BY-4.0",
    "fluent-emoji": "MIT",
    "fluent-emoji-flat": "MIT",
    "fluent-emoji-high-contrast": "MIT",
    "fluent-3d": "MIT",
    "game-icons": "CC-BY-3.0",
    "openclipart": "public domain",
}
ICON_SETS = [source for source in LICENSES if source not in ("fluent-3d", "game-icons", "openclipart")]
EMOJI_GROUPS = {3, 4, 5, 6, 7}
"""Animals and nature, food, travel, activities, objects."""
CLIPART_SKIP = re.compile(
    r"/(computer/icons|computer/buttons|computer/diagrams|shapes|special|buttons|logos|unsorted/duplicates|"
    r"signs_and_symbols|geography|recreation/games/cards|recreation/games/dice|recreation/toys/jigsaw)"
)
Job = tuple[str, str, dict[str, Any]]
"""("svg", text) or ("file", path), and the record of the drawing."""


def main() -> None:
    """Collect, rasterize on all cores, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--node", type=Path, required=True)
    parser.add_argument("--clipart", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [*emoji_jobs(args.node), *game_icon_jobs(args.node), *clipart_jobs(args.clipart)]
    with ProcessPoolExecutor() as pool:
        drawn = list(pool.map(rasterize, [(kind, text) for kind, text, _ in jobs], chunksize=32))
    kept = [(image, record) for image, (_, _, record) in zip(drawn, jobs, strict=True) if image is not None]
    np.save(args.out / "images.npy", np.stack([image for image, _ in kept]))
    with (args.out / "index.jsonl").open("w", encoding="utf-8") as file:
        for _, record in kept:
            file.write(json.dumps({**record, "license": LICENSES[record["source"]]}) + "\n")
    logging.info("%d of %d rendered: %s", len(kept), len(jobs), dict(Counter(r["source"] for _, r in kept)))


def emoji_jobs(node: Path) -> Iterator[Job]:
    """Give every icon set's drawings of the concepts that Unicode names."""
    concepts = unicode_concepts(node)
    by_name = concept_names(node, concepts)
    for source in ICON_SETS:
        folder = node / "@iconify-json" / source
        icons = json.loads((folder / "icons.json").read_text())
        codes = character_codes(node, source)
        for name, icon in icons["icons"].items():
            plain = re.sub(r"-\d+$", "", name)
            code = next(
                (
                    c
                    for c in (codes.get(name), by_name.get(letters(name)), by_name.get(letters(plain)))
                    if c in concepts
                ),
                None,
            )
            if code is not None:
                yield "svg", svg_text(icon, icons), {"source": source, "name": name, **concepts[code]}
    for path in sorted((node / "@lobehub" / "fluent-emoji-3d" / "assets").glob("*")):
        code = without_variation(path.stem)
        if code in concepts:
            yield "file", str(path), {"source": "fluent-3d", "name": path.name, **concepts[code]}


def unicode_concepts(node: Path) -> dict[str, dict[str, Any]]:
    """Read label, keywords, group and subgroup of each emoji, by code points."""
    data = json.loads((node / "emojibase-data" / "en" / "data.json").read_text())
    groups = json.loads((node / "emojibase-data" / "meta" / "groups.json").read_text())
    concepts = {}
    for entry in data:
        if entry.get("group") in EMOJI_GROUPS:
            code = without_variation(entry["hexcode"])
            concepts[code] = {
                "code": code,
                "label": entry["label"],
                "tags": entry.get("tags", []),
                "group": groups["groups"][str(entry["group"])],
                "subgroup": groups["subgroups"][str(entry["subgroup"])],
            }
    return concepts


def concept_names(node: Path, concepts: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Map every known spelling of a concept to its code points."""
    by_name: dict[str, str] = {}
    for code, concept in concepts.items():
        by_name.setdefault(letters(concept["label"]), code)
        if "-" not in code:
            by_name.setdefault(letters(unicodedata.name(chr(int(code, 16)), "")), code)
    for source in ("noto", "twemoji"):
        for name, code in character_codes(node, source).items():
            if code in concepts:
                by_name.setdefault(letters(name), code)
    return by_name


def character_codes(node: Path, source: str) -> dict[str, str]:
    """Read which code points each icon of a set draws, where the set says so."""
    if source == "fluent-emoji":
        source = "fluent-emoji-flat"
    path = node / "@iconify-json" / source / "chars.json"
    codes: dict[str, str] = {}
    if path.exists():
        for code, name in json.loads(path.read_text()).items():
            codes.setdefault(name, without_variation(code))
    return codes


def game_icon_jobs(node: Path) -> Iterator[Job]:
    """Give the named silhouettes of game-icons."""
    icons = json.loads((node / "@iconify-json" / "game-icons" / "icons.json").read_text())
    for name, icon in icons["icons"].items():
        if not name.startswith("abstract-"):
            yield (
                "svg",
                svg_text(icon, icons),
                {"source": "game-icons", "name": name, "label": name.replace("-", " "), "tags": []},
            )


def clipart_jobs(folder: Path) -> Iterator[Job]:
    """Give Open Clip Art's drawings with title and keywords."""
    for path in sorted(folder.rglob("*.svg")):
        relative = "/" + str(path.relative_to(folder))
        if CLIPART_SKIP.match(relative):
            continue
        head = path.read_bytes()[:60_000].decode("utf8", "replace")
        title = re.search(r"<dc:title>([^<]*)</dc:title>", head)
        words = [html.unescape(word).strip().lower() for word in re.findall(r"<rdf:li>([^<]*)</rdf:li>", head)]
        tags = [word for word in words if word and len(word) < 30][:24]
        label = html.unescape(title.group(1)).strip().lower() if title else ""
        if label or tags:
            parts = relative.split("/")
            yield (
                "file",
                str(path),
                {
                    "source": "openclipart",
                    "name": relative[1:],
                    "label": label,
                    "tags": tags,
                    "group": parts[1],
                    "subgroup": parts[-2],
                },
            )


def svg_text(icon: dict[str, Any], icons: dict[str, Any]) -> str:
    """Wrap an icon's body into an SVG document."""
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    body = icon["body"].replace("currentColor", "#222")
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{width}" height="{height}">{body}</svg>'
    )


def rasterize(job: tuple[str, str]) -> np.ndarray | None:
    """Render one drawing to a centered square; None if it is broken, empty, huge or a strip."""
    kind, text = job
    try:
        if kind == "file" and not text.endswith(".svg"):
            image = Image.open(text).convert("RGBA")
        else:
            if kind == "file":
                text = Path(text).read_bytes().decode("utf8", "replace")
                if len(text) > 1_500_000:
                    return None
            # resvg's default dpi of 0 rejects every file sized in points or millimeters.
            png = resvg_py.svg_to_bytes(svg_string=text, width=200, dpi=90.0, skip_system_fonts=True)
            image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    except (OSError, ValueError, RuntimeError, BaseException) as error:  # resvg's panics derive from BaseException
        if isinstance(error, KeyboardInterrupt):
            raise
        return None
    if max(image.size) > 6 * min(image.size):
        return None
    return centered(image)


def centered(image: Image.Image) -> np.ndarray | None:
    """Crop to what is visible and fit into a square."""
    box = image.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    scale = (SIZE - 4) / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    square.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return np.asarray(square)


def letters(text: str) -> str:
    """Reduce a name to its letters and digits."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "", ascii_text)


def without_variation(code: str) -> str:
    """Drop variation selectors from a code point sequence."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


if __name__ == "__main__":
    main()
