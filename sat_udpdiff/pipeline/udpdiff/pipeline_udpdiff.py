"""Sampling in diffusers' conventions: text to a video, its dense map, and what the map says.

Where the released network was trained otherwise than diffusers' CogVideoX pipeline samples, this
follows the training: the branch without text is an all-zero embedding (not that of an empty
prompt), positions are whole numbers at every size, and latents stay float32 between the steps
(diffusers rounds them to the network's dtype).
"""

import inspect
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from sat_udpdiff.colormaps.pixel_values import to_uint8
from sat_udpdiff.config import TASKS, Config, Task
from sat_udpdiff.diffusion.guidance import guidance_scale as scale_of_step
from sat_udpdiff.diffusion.guidance import guide
from sat_udpdiff.encoders.vae import decode_latents, enable_tiling, spatial_compression
from sat_udpdiff.generation import check_task, decode_dense
from sat_udpdiff.pipeline.settings import settings_of
from sat_udpdiff.pipeline.udpdiff.adapters import AdapterLoading
from sat_udpdiff.pipeline.udpdiff.callbacks import Callback, SamplingState, StepCallback
from sat_udpdiff.pipeline.udpdiff.inputs import (
    Request,
    TextInputs,
    check_latents,
    check_output,
    chosen_guidance,
    make_request,
)
from sat_udpdiff.pipeline.udpdiff.output import Frames, UDPDiffPipelineOutput
from sat_udpdiff.pipeline.udpdiff.prompts import embed_branches
from sat_udpdiff.pipeline.udpdiff.transformer import UDPDiffTransformer3DModel

Generators = torch.Generator | list[torch.Generator] | None


class UDPDiffPipeline(DiffusionPipeline, AdapterLoading):
    """Text to a video and its segmentation or depth.

    Args:
        tokenizer: Of the text encoder.
        text_encoder: T5; None if embeddings are passed to every call.
        vae: The codec of both halves; its config holds the scale of the latents.
        transformer: The network; its config holds the native size and the tasks.
        scheduler: CogVideoXDDIMScheduler or CogVideoXDPMScheduler.
        num_inference_steps: Default of calls, as are `guidance` and `guidance_scale`.
        guidance: constant, dynamic_released or dynamic_step.
        guidance_scale: The scale itself, or the height of the dynamic curve.
        unconditional: zeros or empty: embedding of the branch without text.
        segmentation: Colormap of segmentation maps, pixelplanes or location_aware.
        location_grid: Cells per side of location_aware.
        depth_inverse: How depth maps are read, paper or midbin.
        fps: Frames per second of the clips that the network was trained on.
    """

    # diffusers sets them in register_modules, and offloading and compiling wrap them.
    tokenizer: Any
    text_encoder: Any
    vae: Any
    transformer: Any
    scheduler: Any

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs: ClassVar[list[str]] = [
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
    ]

    def __init__(  # noqa: PLR0913 - diffusers reads components and settings from the signature
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: T5EncoderModel | None,
        vae: AutoencoderKLCogVideoX,
        transformer: UDPDiffTransformer3DModel,
        scheduler: SchedulerMixin,
        num_inference_steps: int = 50,
        guidance: str = "dynamic_released",
        guidance_scale: float = 6.0,
        unconditional: str = "zeros",
        segmentation: str = "pixelplanes",
        location_grid: int = 11,
        depth_inverse: str = "midbin",
        fps: float = 8.0,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            transformer=transformer,
            scheduler=scheduler,
        )
        self.register_to_config(
            num_inference_steps=num_inference_steps,
            guidance=guidance,
            guidance_scale=guidance_scale,
            unconditional=unconditional,
            segmentation=segmentation,
            location_grid=location_grid,
            depth_inverse=depth_inverse,
            fps=fps,
        )
        _ = self.settings  # a folder that does not fit together is refused now
        self.video_processor = VideoProcessor(vae_scale_factor=spatial_compression(vae))
        self._guidance_scale, self._num_timesteps = guidance_scale, 0
        self._attention_kwargs: dict[str, Any] | None = None
        self._current_timestep: Tensor | None = None
        self._interrupt = False

    @property
    def settings(self) -> Config:
        """Our configuration, as far as the pipeline and its components know it."""
        return settings_of(
            pipeline=self.config,
            transformer=self.transformer.config,
            vae=self.vae.config,
            num_train_timesteps=self.scheduler.config["num_train_timesteps"],
        )

    @property
    def guidance_scale(self) -> float:
        """Of the running call."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call."""
        return self._num_timesteps

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """Of the last call."""
        return self._attention_kwargs

    @property
    def current_timestep(self) -> Tensor | None:
        """While a call runs."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to leave the remaining steps out."""
        return self._interrupt

    def enable_vae_tiling(self) -> None:
        """Decode in tiles that overlap and are blended: less memory, not exactly the same video."""
        enable_tiling(self.vae)

    def disable_vae_tiling(self) -> None:
        """Decode whole frames."""
        self.vae.disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Decode one clip after the other: the memory of one."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode all clips at once."""
        self.vae.disable_slicing()

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 - diffusers' conventions
        self,
        prompt: str | list[str] | None = None,
        task: str | None = None,
        *,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance: str | None = None,
        use_dynamic_cfg: bool | None = None,
        num_videos_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        max_sequence_length: int | None = None,
    ) -> UDPDiffPipelineOutput | tuple[Any, ...]:
        """Sample videos with their dense maps; what is left out comes from the folder.

        prompt, negative_prompt: Text, or a list. Without a negative prompt the second branch is the
            `unconditional` of the pipeline. Where the task is told in words (task_signal=prompt)
            they are put in front here; embeddings must hold them already.
        task: segmentation or depth; left out for a network without dense maps.
        height, width, num_frames: Pixels and frames (4k + 1) of a clip.
        guidance_scale, guidance: Weight of the prompt, and how it goes over the steps; above 1 it
            guides, if not constant above 0. `use_dynamic_cfg` is diffusers' word for `guidance`.
        generator, latents: Source of all noise; noise to start from, (b, t, c, h, w).
        prompt_embeds, negative_prompt_embeds: One per prompt, as `encode_prompt` makes them.
        output_type: pil, np, pt or latent; see `Frames` in output.py.
        attention_kwargs: For the attention processors; `scale` is the weight of LoRA.
        callback_on_step_end: (pipeline, step, timestep, tensors) -> tensors to go on with.

        Returns the output, or with return_dict=False (frames, dense, entity_ids, depth). Raises
        ValueError, in one line, before anything is computed.
        """
        text = TextInputs(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            length=max_sequence_length,
        )
        text.check(self.settings, can_encode=self.text_encoder is not None)
        request = make_request(
            config=self.settings,
            task=task,
            num_prompts=text.count,
            videos_per_prompt=num_videos_per_prompt,
            num_frames=num_frames,
            height=height,
            width=width,
            num_steps=num_inference_steps,
            guidance=chosen_guidance(guidance, use_dynamic_cfg=use_dynamic_cfg),
            guidance_scale=guidance_scale,
        )
        tell = StepCallback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        check_output(output_type, tensor_inputs=tell.names, known=self._callback_tensor_inputs)
        check_latents(latents, shape=request.latent_shape, generator=generator)
        self._start(request, attention_kwargs=attention_kwargs)
        state = self._prepare(text, request, generator=generator, latents=latents)
        self._denoise(state, request, generator=generator, tell=tell)
        output = self._decode(state.latents, request, output_type=output_type)
        self.maybe_free_model_hooks()
        return output if return_dict else output.parts()

    def encode_prompt(
        self,
        prompt: str | list[str],
        *,
        task: str | None = None,
        negative_prompt: str | list[str] | None = None,
        max_sequence_length: int | None = None,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of prompts, and of the branch without them: (b, n, d) each.

        Args:
            prompt: Text, or a list.
            task: For networks that are told the task in words (task_signal=prompt).
            negative_prompt: In place of the pipeline's `unconditional`; one, or one per prompt.
            max_sequence_length: Tokens; default: as the network was trained.
            device: Where the text encoder is; default: where the pipeline computes.
        """
        text = TextInputs(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=None,
            negative_prompt_embeds=None,
            length=max_sequence_length,
        )
        text.check(self.settings, can_encode=self.text_encoder is not None)
        is_told = task is not None or self.settings.model.task_signal == "prompt"
        return self._embed(
            text,
            task=check_task(task, config=self.settings) if is_told else None,
            device=torch.device(device or self._execution_device),
        )

    def _embed(
        self, text: TextInputs, *, task: Task | None, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        return embed_branches(
            text,
            model=self.text_encoder,
            tokenizer=self.tokenizer,
            config=self.settings,
            task=task,
            device=device,
        )

    def _start(self, request: Request, *, attention_kwargs: dict[str, Any] | None) -> None:
        self._guidance_scale = request.guidance_scale
        self._attention_kwargs = attention_kwargs
        self._current_timestep, self._interrupt = None, False

    def _prepare(
        self, text: TextInputs, request: Request, *, generator: Generators, latents: Tensor | None
    ) -> SamplingState:
        """Embeddings in the dtype of the network, and the noise to start from in float32."""
        device = self._execution_device
        branches = [
            embeds.to(device=device, dtype=self.transformer.dtype).repeat_interleave(
                request.videos_per_prompt, dim=0
            )
            for embeds in self._embed(text, task=request.task, device=device)
        ]
        noise = latents
        if noise is None:
            noise = randn_tensor(
                request.latent_shape, generator=generator, device=device, dtype=torch.float32
            )
        noise = noise.to(device=device, dtype=torch.float32)
        return SamplingState(
            latents=noise * self.scheduler.init_noise_sigma,
            prompt_embeds=branches[0],
            negative_prompt_embeds=branches[1],
        )

    def _denoise(
        self,
        state: SamplingState,
        request: Request,
        *,
        generator: Generators,
        tell: StepCallback,
    ) -> None:
        """All steps, on the latents of `state`."""
        scheduler: Any = self.scheduler
        scheduler.set_timesteps(request.num_steps, device=state.latents.device)
        timesteps = scheduler.timesteps
        self._num_timesteps = len(timesteps)
        make_step: Any = scheduler.step
        takes = inspect.signature(make_step).parameters
        extra: dict[str, Any] = {"return_dict": False} | (
            {"generator": generator} if "generator" in takes else {}
        )
        rotary, x0_before = self.transformer.rotary_positions(state.latents), None
        progress: Any = self.progress_bar
        is_dpm = isinstance(scheduler, CogVideoXDPMScheduler)
        with progress(total=len(timesteps)) as bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = t
                velocity = self._velocity(state, request, step=i, timestep=t, rotary=rotary)
                if is_dpm:
                    before = timesteps[i - 1] if i else None
                    state.latents, x0_before = make_step(
                        velocity, x0_before, t, before, state.latents, **extra
                    )
                else:
                    state.latents = make_step(velocity, t, state.latents, **extra)[0]
                tell(self, state, step=i, timestep=t)
                bar.update()
        self._current_timestep = None

    def _velocity(
        self,
        state: SamplingState,
        request: Request,
        *,
        step: int,
        timestep: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """The guided prediction of v, in the dtype of the latents."""
        # A callback may switch guidance off: the scale is that of the pipeline, not of the request.
        is_guided = self._guidance_scale > (1 if request.guidance == "constant" else 0)
        latents, text = state.latents, state.prompt_embeds
        if is_guided:
            latents = torch.cat([latents, latents])
            text = torch.cat([state.negative_prompt_embeds, text])
        latents = self.scheduler.scale_model_input(latents, timestep)
        # The task is told in both branches: guidance must not pull away from it.
        task = None
        if request.task is not None:
            task = latents.new_full((len(latents),), TASKS.index(request.task), dtype=torch.int64)
        with self.transformer.cache_context("cond_uncond"):
            velocity = self.transformer(
                hidden_states=latents.to(self.transformer.dtype),
                encoder_hidden_states=text,
                timestep=timestep.expand(len(latents)),
                image_rotary_emb=rotary,
                attention_kwargs=self._attention_kwargs,
                return_dict=False,
                task=task,
            )[0]
        if is_guided:
            scale = scale_of_step(
                request.guidance,
                scale=self._guidance_scale,
                step=step,
                timestep=int(timestep),
                num_steps=request.num_steps,
            )
            uncond, cond = velocity.chunk(2)
            velocity = guide(uncond, cond, scale)
        return velocity.to(state.latents.dtype)

    def _decode(
        self, latents: Tensor, request: Request, *, output_type: str
    ) -> UDPDiffPipelineOutput:
        """Both halves, one after the other: decoding takes more memory than all before it."""
        config = self.settings
        latents = latents[:, request.extra_frames :]
        halves = list(torch.split(latents, config.model.latent_channels, dim=2))
        if output_type == "latent":
            dense = halves[1] if len(halves) > 1 else None
            return UDPDiffPipelineOutput(frames=halves[0], dense=dense, task=request.task)
        rgb = decode_latents(self.vae, halves[0], scale_factor=config.codec.scale_factor)
        frames = self._frames(rgb, output_type)
        if len(halves) == 1 or request.task is None:
            return UDPDiffPipelineOutput(frames=frames)
        colors = decode_latents(self.vae, halves[1], scale_factor=config.codec.scale_factor)
        said = [
            decode_dense(to_uint8(clip), task=request.task, config=config.colormap)
            for clip in colors
        ]
        ids = [ids for ids, _ in said if ids is not None]
        depths = [depth for _, depth in said if depth is not None]
        return UDPDiffPipelineOutput(
            frames=frames,
            dense=self._frames(colors, output_type),
            entity_ids=np.stack(ids) if ids else None,
            depth=np.stack(depths) if depths else None,
            task=request.task,
        )

    def _frames(self, rgb: Tensor, output_type: str) -> Frames:
        return self.video_processor.postprocess_video(
            rgb.permute(0, 2, 1, 3, 4), output_type=output_type
        )
