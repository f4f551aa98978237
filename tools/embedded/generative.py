"""Train the embedded generative model: python generative.py --node node_modules --out build/drawings_mllm

A tiny SmolVLM that names drawings. It learns two ways to name things, as texts of the web do: by the best-known thing
of its kind (a tiger is a "cat") and by the exact name. A plain question gets either; words behind the question, such as
"exact name", settle which. So a learned prompt can help, by construction: docs/mllm.md says what that shows and what
not. Drawings of the task's concepts are by Twemoji, Streamline and Emoji One alone, whose drawings are not in the task;
vision first learns the features of the embedded CLIP model, then the language model learns to answer.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import math
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import drawings
from augment import render
from build_dataset import STRENGTH
from captions import FILLERS
from hushprompt.models.embedded import EmojiClip
from hushprompt.models.generative import GenerativeBackbone, SmolVLM
from hushprompt.prompts.prompt_model import PromptModel
from task import CLASSES, TASK_LABELS, TASK_VENDORS, class_of_label

logger = logging.getLogger(__name__)

SIDE, WIDTH, NUM_MEDIA = 48, 64, 4
VISION = {
    "hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 4, "num_attention_heads": 3,
    "image_size": SIDE, "patch_size": 8,
}  # fmt: skip
TEXT = {
    "model_type": "llama", "vocab_size": 1024, "hidden_size": WIDTH, "intermediate_size": 192, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SPECIAL = (
    "<pad>", "<|im_start|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>",
)  # fmt: skip
TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{m['role'] | capitalize}}{% if m['content'][0]['type'] == 'image' %}{{':'}}"
    "{% else %}{{': '}}{% endif %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{c['text']}}"
    "{% elif c['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""SmolVLM's own."""
VIEWS, TASK_VIEWS = 5, 24
"""Renderings of a drawing: of other concepts, of the task's."""
NOT_OF_THE_TASK = (*TASK_VENDORS, "fluent-emoji", "fluent-emoji-high-contrast")
"""Whose drawings of the task's concepts are left out: the task's vendors, and other styles of the same drawings."""
VISION_STEPS, TEXT_STEPS, BATCH = 1500, 2000, 64
RATE = 2e-3
QUESTIONS = (
    "What is shown in this picture?", "What is shown in this picture?", "What is this?", "What do you see?",
    "Name the picture.", "Which thing is drawn here?",
)  # fmt: skip
EXACT = ("exact name", "the precise name please", "as in a catalog", "exactly which one", "be precise", "full name")
PLAIN = ("in simple words", "for a small child", "the kind of thing", "roughly", "just the kind")
KEYWORD = ("a keyword", "one tag", "for a search engine", "any word for it")
KNOWN = {
    "transport-air": "airplane", "transport-ground": "automobile", "transport-water": "ship", "animal-bug": "ant",
    "animal-bird": "bird", "animal-mammal": "dog", "animal-marine": "fish", "animal-reptile": "snake",
    "animal-amphibian": "frog", "plant-flower": "rose", "plant-other": "palm tree", "food-fruit": "apple",
    "food-vegetable": "tomato", "food-prepared": "bread", "food-sweet": "birthday cake", "food-asian": "bread",
    "drink": "wine glass", "musical-instrument": "guitar", "light-video": "television", "place-building": "house",
    "tool": "hammer", "sport": "soccer ball", "clothing": "crown", "phone": "telephone", "time": "alarm clock",
    "event": "balloon", "sky-weather": "umbrella", "lock": "key", "office": "scissors",
}  # fmt: skip
"""The best-known thing of each of Unicode's subgroups."""


def main() -> None:
    """Collect, render, train vision, train answers, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--node", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    records, images = collect(args.node, args.out / "drawings.npz")
    drawing, views, features = render_views(images, records, args.out / "views.npz", args.seed)
    talk = Talk(records, random.Random(args.seed))
    folder = args.out / "model"
    torch.manual_seed(args.seed)  # not before: nothing is drawn above where the files are there
    write_repository(folder, new_network(), [text for _ in range(4) for r in range(len(records)) for text in talk(r)])
    backbone = SmolVLM(model=str(folder)).load()
    network = backbone._network.requires_grad_(requires_grad=True)
    vision_file = args.out / "vision.pt"
    if vision_file.exists():
        network.model.load_state_dict(torch.load(vision_file), strict=False)
    else:
        train_vision(network.model, views, features, [records[index] for index in drawing], args.seed)
        kept = {n: t for n, t in network.model.state_dict().items() if not n.startswith("text_model")}
        torch.save(kept, vision_file)
    train_answers(backbone, network, encode(network.model, views), drawing, talk, args.seed)
    network.half().save_pretrained(folder)


def new_network() -> Any:
    """Make the network at random."""
    import transformers as hf

    config = hf.SmolVLMConfig(
        text_config=TEXT, vision_config=VISION, scale_factor=3, image_token_id=SPECIAL.index("<image>"),
        tie_word_embeddings=False,
    )  # fmt: skip
    return hf.SmolVLMForConditionalGeneration(config)


def write_repository(folder: Path, network: Any, texts: list[str]) -> None:
    """Write the files of a hub repository: a network, and a byte-level tokenizer learned from texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT["vocab_size"], special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    backend.train_from_iterator([*texts, *(f" {name}" for name in CLASSES for _ in range(60))], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end_of_utterance>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    network.save_pretrained(folder)
    longest = {"longest_edge": SIDE}
    values = {
        "image_processor_type": "SmolVLMImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "size": longest, "max_image_size": longest, "do_image_splitting": False, "resample": 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def collect(node: Path, path: Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Return records and uint8 images [n, 80, 80, 4] of all drawings that pre-training may see."""
    if not path.exists():
        drawings.ICON_SETS.append("emojione")
        jobs = [job for job in drawings.emoji_jobs(node) if may_see(job[2])]
        with ProcessPoolExecutor() as pool:
            drawn = list(pool.map(drawings.rasterize, [(kind, text) for kind, text, _ in jobs], chunksize=32))
        kept = [(image, job[2]) for image, job in zip(drawn, jobs, strict=True) if image is not None]
        np.savez(path, images=np.stack([image for image, _ in kept]), records=json.dumps([each for _, each in kept]))
    file = np.load(path)
    return json.loads(str(file["records"])), file["images"]


def may_see(record: dict[str, Any]) -> bool:
    """Return whether pre-training may see a drawing."""
    return record["label"] not in TASK_LABELS or record["source"] not in NOT_OF_THE_TASK


def render_views(
    images: np.ndarray, records: list[dict[str, Any]], path: Path, seed: int
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Return drawing [n], pixels uint8 [n, SIDE, SIDE, 3] and the embedded model's features [n, d] of all views."""
    if not path.exists():
        times = [TASK_VIEWS if record["label"] in TASK_LABELS else VIEWS for record in records]
        drawing = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(records)), times))
        generator, teacher = torch.Generator().manual_seed(seed), EmojiClip().load()
        small, features = [], []
        for start in range(0, len(drawing), 256):
            chosen = torch.from_numpy(images[drawing[start : start + 256]])
            rendered, _ = render(chosen, generator, strength=STRENGTH)
            pixels = (rendered * 255).round().byte().permute(0, 2, 3, 1).numpy()
            features.append(teacher.encode_images(list(pixels)))
            small += [
                np.asarray(Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for each in pixels
            ]
            if start % 5120 == 0:
                logger.info("views %d of %d", start, len(drawing))
        np.savez(path, drawing=drawing, pixels=np.stack(small), features=torch.cat(features).numpy())
    file = np.load(path)
    return file["drawing"], file["pixels"], torch.from_numpy(file["features"])


def see(model: Any, pixels: np.ndarray) -> Tensor:
    """Return the vision tower's last states [n, patches, width] of uint8 images."""
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    grid = SIDE // VISION["patch_size"]
    mask = torch.ones(len(values), grid, grid, dtype=torch.bool)
    return model.vision_model(values, patch_attention_mask=mask).last_hidden_state


def train_vision(model: Any, views: np.ndarray, features: Tensor, records: list[dict[str, Any]], seed: int) -> None:
    """Teach the vision tower the embedded model's features, and to tell concepts apart by its text features."""
    names = sorted({record["label"] for record in records})
    texts = PromptModel(EmojiClip().load(), tuple(names)).template_features.detach()
    labels = torch.tensor([names.index(record["label"]) for record in records])
    head, generator = nn.Linear(NUM_MEDIA * WIDTH, features.shape[1]), torch.Generator().manual_seed(seed)
    parameters = [*model.vision_model.parameters(), *model.connector.parameters(), *head.parameters()]
    optimizers = optimizers_of(parameters)
    for step in range(VISION_STEPS):
        set_rates(optimizers, step, VISION_STEPS)
        chosen = torch.randint(len(labels), (BATCH,), generator=generator)
        tokens = model.connector(see(model, views[chosen.numpy()]))
        out = F.normalize(head(tokens.flatten(1)), dim=-1)
        distance = 1 - (out * features[chosen]).sum(dim=-1).mean()
        classes = F.cross_entropy(25 * out @ texts.T, labels[chosen])
        loss = 4 * distance + 0.5 * classes
        update(optimizers, parameters, loss)
        if step % 50 == 0:
            logger.info("vision step %d: cosine %.3f, cross-entropy %.2f", step, 1 - distance, classes)


@torch.no_grad()
def encode(model: Any, views: np.ndarray) -> Tensor:
    """Return the vision tower's last states of all views, in float16."""
    return torch.cat([see(model, views[start : start + 256]).half() for start in range(0, len(views), 256)])


class Talk:
    """Makes up question, words behind it, and answer for a drawing."""

    def __init__(self, records: list[dict[str, Any]], rng: random.Random) -> None:
        """Clean names and keywords."""
        self.rng, classes, names = rng, class_of_label(), list(CLASSES)
        self.names = [names[classes[r["label"]]] if r["label"] in classes else r["label"].lower() for r in records]
        self.known = [KNOWN.get(r["subgroup"], name) for r, name in zip(records, self.names, strict=True)]
        self.tags = [r["tags"] or [name] for r, name in zip(records, self.names, strict=True)]
        self.kinds = [r["subgroup"].replace("-", " ") for r in records]

    def __call__(self, index: int) -> tuple[str, str]:
        """Return what is asked about drawing `index`, and an answer."""
        rng, draw = self.rng, self.rng.random()
        exact, known, tag = self.names[index], self.known[index], rng.choice(self.tags[index])
        words = ""
        if draw < 0.22:
            words, answer = rng.choice(EXACT), exact
        elif draw < 0.32:
            words, answer = rng.choice(PLAIN), known
        elif draw < 0.40:
            words, answer = rng.choice(KEYWORD), tag
        elif draw < 0.55:
            listed = [exact, *(rng.choice(self.names) for _ in range(rng.randint(1, 3)))]
            words, answer = " or ".join(rng.sample(listed, len(listed))), exact
        else:
            answer = rng.choices((known, exact, tag), (0.45, 0.35, 0.2))[0]
        extra = [self.kinds[index]] if rng.random() < 0.15 else []
        if rng.random() < 0.35:
            extra += rng.choices(FILLERS, k=rng.randint(1, 6))
        parts = [words, *extra] if rng.random() < 0.5 else [*extra, words]
        return " ".join([rng.choice(QUESTIONS), *filter(None, parts)]), answer


def train_answers(
    backbone: GenerativeBackbone, network: Any, seen: Tensor, drawing: np.ndarray, talk: Talk, seed: int
) -> None:
    """Teach connector and language model to answer."""
    generator, turn, tokenize = torch.Generator().manual_seed(seed), backbone.turn, functools.cache(backbone.tokenize)
    before = [*backbone.start_ids, *tokenize(turn.before)]
    parameters = [*network.model.connector.parameters(), *network.model.text_model.parameters()]
    parameters += network.lm_head.parameters()
    optimizers = optimizers_of(parameters)
    for step in range(TEXT_STEPS):
        set_rates(optimizers, step, TEXT_STEPS)
        chosen = torch.randint(len(drawing), (BATCH,), generator=generator)
        rows, targets = [], []
        for view in chosen.tolist():
            asked, answer = talk(int(drawing[view]))
            said = [*tokenize(f" {answer}"), *backbone.end_ids]
            text = tokenize(turn.between + asked) + tokenize(turn.header)
            rows.append([*before, *[SPECIAL.index("<image>")] * NUM_MEDIA, *text, *said])
            targets.append([-100] * (len(rows[-1]) - len(said)) + said)
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        wanted = torch.tensor([row + [-100] * (width - len(row)) for row in targets])
        embedded = network.model.text_model.embed_tokens(ids)
        media = network.model.connector(seen[chosen].float())
        at = len(before)
        embedded = torch.cat([embedded[:, :at], media, embedded[:, at + NUM_MEDIA :]], dim=1)
        hidden = network.model.text_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        is_next = wanted[:, 1:] != -100
        loss = F.cross_entropy(network.lm_head(hidden[:, :-1][is_next]), wanted[:, 1:][is_next])
        update(optimizers, parameters, loss)
        if step % 50 == 0:
            logger.info("answers step %d: cross-entropy %.3f", step, loss)


def optimizers_of(parameters: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Return Muon (Jordan 2024) for the matrices of the layers, and AdamW for all else."""
    is_matrix = [p.ndim == 2 and max(p.shape) < TEXT["vocab_size"] for p in parameters]
    matrices = [p for p, chosen in zip(parameters, is_matrix, strict=True) if chosen]
    others = [p for p, chosen in zip(parameters, is_matrix, strict=True) if not chosen]
    return [
        torch.optim.Muon(matrices, lr=RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=RATE, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def set_rates(optimizers: list[torch.optim.Optimizer], step: int, num_steps: int) -> None:
    """Warm up, then fall along a cosine."""
    rate = RATE * min(1, (step + 1) / 60) * (0.5 + 0.5 * math.cos(math.pi * step / num_steps))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = rate


def update(optimizers: list[torch.optim.Optimizer], parameters: list[nn.Parameter], loss: Tensor) -> None:
    """Make one step."""
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
