"""Captions of rendered drawings: names, keywords, style and damage words, and long lead-ins.

Two lessons of earlier builds are in here. Names must be seen at every position that a learned context can put them at,
so part of the captions begins with 2 to 17 words of lead-in. And the text tower must learn to read what stands before a
name, so style and damage words are frequent, and training takes only a drawing's own caption as its positive.
"""

from __future__ import annotations

import random
import re
from typing import Any

TEMPLATES = (
    "{}", "{}", "a {}", "the {}", "one {}", "a picture of a {}", "an image of a {}", "a drawing of a {}",
    "an icon of a {}", "a photo of a {}", "clip art of a {}", "an illustration of a {}", "this is a {}",
)  # fmt: skip
STYLES = {
    "twemoji": ("flat", "flat simple"), "noto": ("colorful", "cartoon"), "noto-v1": ("old cartoon", "cartoon"),
    "fxemoji": ("flat", "soft"), "streamline-emojis": ("cute outlined", "doodle"),
    "fluent-emoji": ("glossy", "modern"), "fluent-emoji-flat": ("flat", "modern flat"),
    "fluent-3d": ("3d", "rendered 3d"), "fluent-emoji-high-contrast": ("black and white", "thick"),
    "game-icons": ("black and white", "silhouette"), "openclipart": ("clip art",),
}  # fmt: skip
DAMAGE_WORDS = {
    "gray": ("gray", "monochrome"), "dark": ("dark", "underexposed"), "bright": ("bright", "overexposed"),
    "noisy": ("noisy", "grainy"), "blurry": ("blurry", "out of focus"), "occluded": ("partly hidden", "occluded"),
    "small": ("small", "tiny"), "close": ("large", "close up"), "tilted": ("tilted", "rotated"),
}  # fmt: skip
FILLERS = """
    the of and in on from with for by this that here is are was very nice new old best free set page book file series
    number collection sheet kids simple great 1 2 3 4 5 6 7 8 9 look see my your our some more other art design vector
    graphic symbol print download gallery example sample web card poster sticker sketch made found shown view part item
    . , : - ;
""".split()  # noqa: SIM905
UNUSABLE = re.compile(
    r"^(various cliparts?|clipart.*|open clip art.*|unknown|untitled|image|icon|aiga.*|.*iconset.*|)$"
)
STOP_TAGS = {
    "clip_art", "clip art", "clipart", "externalsource", "svg", "icon", "remix", "various", "unsorted", "wmf",
    "hash(0x", "image",
}  # fmt: skip


class Captioner:
    """Makes a fresh caption of a rendered drawing at every call."""

    def __init__(
        self, records: list[dict[str, Any]], *, name_share: float, lead_in_share: float, style_share: float
    ) -> None:
        """Clean labels and keywords.

        Args:
            records: of drawings.py.
            name_share: share of captions that say the name rather than keywords.
            lead_in_share: share of captions with a long lead-in.
            style_share: share of captions with a style word.
        """
        self.name_share, self.lead_in_share, self.style_share = name_share, lead_in_share, style_share
        self.sources = [record["source"] for record in records]
        self.kinds = [
            [word for word in re.split("-", f"{r.get('group', '')}-{r.get('subgroup', '')}") if word] for r in records
        ]
        self.labels, self.tags = [], []
        for record in records:
            label, tags = clean(record)
            self.labels.append(label or (tags[0] if tags else "thing"))
            self.tags.append(tags)

    def __call__(self, index: int, attributes: dict[str, Any], rng: random.Random) -> str:
        """Caption drawing `index`, to which `attributes` was done."""
        caption = self.plain(index, attributes, rng)
        if rng.random() < self.lead_in_share:
            caption = " ".join([*self.lead_in(index, attributes, rng), caption])
        return caption

    def lead_in(self, index: int, attributes: dict[str, Any], rng: random.Random) -> list[str]:
        """Give 2 to 17 words: filler, style, kind and damage words in any order."""
        length, words = rng.randint(2, 17), []
        applied = [name for name in DAMAGE_WORDS if attributes[name]]
        while len(words) < length:
            draw = rng.random()
            if draw < 0.60:
                words.append(rng.choice(FILLERS))
            elif draw < 0.75:
                words += rng.choice(STYLES[self.sources[index]]).split()
            elif draw < 0.87 and self.kinds[index]:
                words.append(rng.choice(self.kinds[index]))
            elif applied:
                words.append(rng.choice(DAMAGE_WORDS[rng.choice(applied)]))
        return words[:length]

    def plain(self, index: int, attributes: dict[str, Any], rng: random.Random) -> str:
        """Give a caption without lead-in."""
        label, tags = self.labels[index], self.tags[index]
        draw = rng.random()
        if draw < self.name_share or not tags:
            core = label
        elif draw < self.name_share + 0.4 * (1 - self.name_share):
            core = rng.choice(tags)
        else:
            words = rng.sample(tags, min(len(tags), rng.randint(2, 4)))
            if rng.random() < 0.3:
                words[rng.randrange(len(words))] = label
            return (", " if rng.random() < 0.5 else " ").join(words)
        adjectives = [rng.choice(w) for name, w in DAMAGE_WORDS.items() if attributes[name] and rng.random() < 0.35]
        if rng.random() < self.style_share:
            adjectives.append(rng.choice(STYLES[self.sources[index]]))
        rng.shuffle(adjectives)
        caption = rng.choice(TEMPLATES).format(" ".join([*adjectives[:3], core]))
        if not attributes["is_textured"] and rng.random() < 0.2:
            caption += f" on a {attributes['background']} background"
        elif attributes["is_textured"] and rng.random() < 0.1:
            caption += " on a textured background"
        return with_articles(caption)


def clean(record: dict[str, Any]) -> tuple[str, list[str]]:
    """Give a usable name and keywords."""
    label, tags = record["label"].replace("’", "'"), list(record["tags"])
    if record["source"] == "openclipart":
        label = " ".join(re.sub(r"&[#a-z0-9]+;|[_\-]+|\b\d+\b", " ", label).split())
        if UNUSABLE.match(label) or len(label) > 40:
            stem = record["name"].rsplit("/", 1)[-1].rsplit(".", 1)[0]
            label = " ".join(re.sub(r"[_\-]+|\b\d+\b", " ", stem).split())
        return label, [
            tag for tag in tags
            if tag not in STOP_TAGS and not tag.startswith("hash") and re.search("[a-z]", tag) and len(tag.split()) <= 3
        ]  # fmt: skip
    if "code" in record:
        tags += record["subgroup"].split("-")[-1:]
    return label, tags


def with_articles(text: str) -> str:
    """Say "an" where a vowel follows."""
    return re.sub(r"\ba ([aeiou])", r"an \1", text)
