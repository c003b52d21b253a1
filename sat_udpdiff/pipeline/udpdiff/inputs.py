"""The arguments of one call of the pipeline, checked before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, get_args

import torch
from torch import Tensor

from sat_udpdiff.config import Config, Guidance, Task
from sat_udpdiff.config_values import hint
from sat_udpdiff.encoders.latents import LatentSize
from sat_udpdiff.generation import check_size, check_task
from sat_udpdiff.model.patches import extra_frames

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextInputs:
    """What the samples show: prompts, or their embeddings."""

    prompt: str | list[str] | None
    negative_prompt: str | list[str] | None
    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None
    length: int | None
    """Tokens per prompt; None: as the network was trained."""

    @property
    def prompts(self) -> list[str]:
        """The prompts; none where their embeddings are given."""
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt or ())

    @property
    def negative_prompts(self) -> list[str]:
        """One per prompt; none if they were left out."""
        if isinstance(self.negative_prompt, str):
            return [self.negative_prompt] * self.count
        return list(self.negative_prompt or ())

    @property
    def count(self) -> int:
        """Number of prompts."""
        return len(self.prompts) if self.prompt_embeds is None else self.prompt_embeds.shape[0]

    def check(self, config: Config, *, can_encode: bool) -> None:
        """Raise ValueError where prompts and embeddings do not go together.

        Args:
            config: Length and size of the embeddings, and how the unconditional branch is made.
            can_encode: Whether there is a text encoder.
        """
        if (self.prompt is None) == (self.prompt_embeds is None):
            got = "neither" if self.prompt is None else "both"
            raise ValueError(f"prompt: expected either prompt or prompt_embeds, got {got}")
        if self.prompt is not None and not (self.prompts and all(p.strip() for p in self.prompts)):
            raise ValueError(f"prompt: expected some text, got {self.prompt!r}")
        if self.negative_prompt is not None and self.negative_prompt_embeds is not None:
            raise ValueError("negative_prompt: expected it or negative_prompt_embeds, got both")
        if self.negative_prompt is not None and len(self.negative_prompts) != self.count:
            raise ValueError(
                f"negative_prompt: expected one, or {self.count} as of prompts, "
                f"got {len(self.negative_prompts)}"
            )
        if not can_encode and self._needs_encoder(config):
            raise ValueError(
                "text_encoder: this pipeline has none; give prompt_embeds, negative_prompt_embeds"
            )
        self._check_length(config)

    def _needs_encoder(self, config: Config) -> bool:
        is_empty_wanted = (
            config.text.unconditional == "empty" and self.negative_prompt_embeds is None
        )
        return self.prompt is not None or self.negative_prompt is not None or is_empty_wanted

    def _check_length(self, config: Config) -> None:
        trained = config.model.text_length
        length = trained if self.length is None else self.length
        if length < 1 or (config.model.positions == "sincos" and length != trained):
            what = f"{trained} (sin-cos positions)" if length > 0 else "at least 1"
            raise ValueError(f"max_sequence_length: expected {what}, got {length}")
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            embeds, expected = getattr(self, name), (self.count, length, config.model.text_dim)
            if embeds is not None and embeds.shape != expected:
                raise ValueError(f"{name}: expected shape {expected}, got {tuple(embeds.shape)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One call, checked."""

    task: Task | None
    size: LatentSize
    """Of the clips, without the frames that the patches add."""
    extra_frames: int
    """Latent frames in front, cut off in the end, so that patches over time fit."""
    num_steps: int
    guidance: Guidance
    guidance_scale: float
    videos_per_prompt: int
    latent_shape: tuple[int, ...]
    """Latents of all samples, (b, t, c, h, w), frames in front included."""


def make_request(  # noqa: PLR0913 - the numbers of one call of the pipeline
    *,
    config: Config,
    task: str | None,
    num_prompts: int,
    videos_per_prompt: int,
    num_frames: int | None,
    height: int | None,
    width: int | None,
    num_steps: int | None,
    guidance: str | None,
    guidance_scale: float | None,
) -> Request:
    """Put the saved defaults where nothing was given; ValueError names what cannot be done."""
    data, sample, model = config.data, config.sample, config.model
    size = check_size(
        num_frames=data.num_frames if num_frames is None else num_frames,
        height=data.height if height is None else height,
        width=data.width if width is None else width,
        config=config,
    )
    num_steps = sample.num_steps if num_steps is None else num_steps
    most = config.diffusion.num_train_timesteps
    if not 1 <= num_steps <= most:
        raise ValueError(f"num_inference_steps: expected 1 .. {most}, got {num_steps}")
    if videos_per_prompt < 1:
        raise ValueError(f"num_videos_per_prompt: expected at least 1, got {videos_per_prompt}")
    kind, kinds = sample.guidance if guidance is None else guidance, get_args(Guidance)
    if kind not in kinds:
        raise ValueError(
            f"guidance: expected one of {', '.join(kinds)}{hint(kind, kinds)}, got {kind}"
        )
    extra = extra_frames(size.frames, patch_size_t=model.patch_size_t)
    channels = model.latent_channels * (1 + model.dense_groups)
    count = num_prompts * videos_per_prompt
    return Request(
        task=check_task(task, config=config),
        size=size,
        extra_frames=extra,
        num_steps=num_steps,
        guidance=cast(Guidance, kind),
        guidance_scale=sample.guidance_scale if guidance_scale is None else guidance_scale,
        videos_per_prompt=videos_per_prompt,
        latent_shape=(count, size.frames + extra, channels, size.height, size.width),
    )


def check_latents(
    latents: Tensor | None,
    *,
    shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator] | None,
) -> None:
    """Raise ValueError where given noise, or the generators of it, are not those of the call."""
    if latents is not None and latents.shape != shape:
        raise ValueError(f"latents: expected shape {shape}, got {tuple(latents.shape)}")
    if isinstance(generator, list) and len(generator) != shape[0]:
        raise ValueError(
            f"generator: expected one, or a list of {shape[0]}, one per video, got {len(generator)}"
        )


def check_output(output_type: str, *, tensor_inputs: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError where the output or the callback's tensors do not exist."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(
            f"output_type: expected one of {', '.join(OUTPUT_TYPES)}"
            f"{hint(output_type, OUTPUT_TYPES)}, got {output_type}"
        )
    for name in tensor_inputs:
        if name not in known:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs: expected some of {', '.join(known)}"
                f"{hint(name, known)}, got {name}"
            )


def chosen_guidance(guidance: str | None, *, use_dynamic_cfg: bool | None) -> str | None:
    """Our name for diffusers' `use_dynamic_cfg`; ValueError if both are given."""
    if use_dynamic_cfg is None:
        return guidance
    if guidance is not None:
        raise ValueError("guidance: expected it or use_dynamic_cfg, got both")
    return "dynamic_released" if use_dynamic_cfg else "constant"
