"""CLAP of transformers: prompts over sounds (Wu et al. 2023, arXiv:2211.06687).

The text tower is a RoBERTa: padding is masked, positions are counted from behind the padding id, and the first
token's pooled state is projected. Only the beginning of a long sound is heard: the library would cut out a random
part, and features must not depend on a draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hushprompt.models.base import Capabilities, Model, check_template, fingerprint, optional
from hushprompt.models.transformers_files import OfTransformers, load_network, load_part, settings_of
from hushprompt.models.transformers_tokenizer import PromptTokenizer
from hushprompt.registry import BACKBONES


@BACKBONES.register("clap")
@dataclass(frozen=True, kw_only=True)
class Clap(OfTransformers):
    """The `backbone` section of a CLAP model of transformers, for audio."""

    model: str = "laion/clap-htsat-unfused"
    """Hub name, or a local folder with config.json, weights, tokenizer files and preprocessor_config.json."""
    template: str = "This is a sound of {}."
    """Hand template of the zero-shot row."""

    def __post_init__(self) -> None:
        check_template(self.template)

    def load(self) -> Model:
        """Read the model.

        Raises:
            ConfigError: transformers is not installed, or the model is of another type.
            DataError: a file is missing or damaged.
        """
        return ClapModel(optional("transformers", "transformers"), self)


class ClapModel(Model):
    """Both towers, frozen, in float32."""

    def __init__(self, transformers: Any, config: Clap) -> None:
        self._model = load_network(transformers, config.model, {"clap": "ClapModel"}, "eager")
        self._tokenizer = PromptTokenizer(load_part(transformers.AutoTokenizer, config.model, "tokenizer"))
        self._extractor = load_part(
            transformers.AutoFeatureExtractor, config.model, "feature extractor (preprocessor_config.json)"
        )
        self._text = self._model.text_model
        self._embedding: nn.Embedding = self._text.embeddings.word_embeddings
        self.start_ids, self.end_ids = self._tokenizer.start_ids, self._tokenizer.end_ids
        self.pad_id = self._tokenizer.pad_id
        text = self._model.config.text_config
        self.token_width = self._embedding.embedding_dim
        self.feature_dim: int = self._model.config.projection_dim
        self.capabilities = Capabilities(
            modality="audio",
            sampling_rate=self._extractor.sampling_rate,
            context_window=text.max_position_embeddings - text.pad_token_id - 1,
        )
        self.logit_scale = float(self._model.logit_scale_a.exp())
        self.template = config.template
        self.preprocessing = {
            key: value for key, value in self._extractor.to_dict().items() if "mel_filters" not in key
        }
        self.fingerprint = fingerprint(
            self._model,
            settings_of(self._model.config),
            self.preprocessing,
            self._tokenizer.settings(),
            "the beginning is heard",
        )

    @torch.no_grad()
    def encode_images(self, images: Sequence[np.ndarray]) -> Float[Tensor, "n d"]:
        """Encode float32 waveforms [samples] at the model's sampling rate; of a long one only the beginning."""
        heard = [np.asarray(wave[: self._extractor.nb_max_samples], dtype=np.float64) for wave in images]
        inputs = self._extractor(heard, sampling_rate=self.capabilities.sampling_rate, return_tensors="pt")
        # No wave is longer than the window. The extractor of fused models would still name a random one as longer.
        is_longer = torch.zeros(len(heard), 1, dtype=torch.bool)
        audio = self._model.audio_model(input_features=inputs["input_features"].float(), is_longer=is_longer)
        return F.normalize(self._model.audio_projection(audio.pooler_output), dim=-1)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of the model's tokenizer without start and end."""
        return self._tokenizer.encode(text)

    def embed(self, token_ids: Int[Tensor, "*l"]) -> Float[Tensor, "*l e"]:
        """Look up token embeddings."""
        return self._embedding(token_ids)

    def encode_prompts(self, prompts: Float[Tensor, "c l e"], end_index: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        """Encode one sequence a class; tokens behind its end are masked."""
        x = self._text.embeddings(inputs_embeds=prompts)
        is_padding = torch.arange(x.shape[1], device=x.device) > end_index[:, None]
        mask = torch.zeros(len(x), 1, 1, x.shape[1]).to(x).masked_fill(is_padding[:, None, None], float("-inf"))
        hidden = self._text.encoder(x, attention_mask=mask)[0]
        return F.normalize(self._model.text_projection(self._text.pooler(hidden)), dim=-1)
