"""Typed configuration: every value of a run, with its unit, default and reason.

A run is described by YAML value files and command-line overrides, later ones winning:

    --base configs/tiny.yaml configs/multitask.yaml train.steps=100 seed=1

The files hold values only; the types, defaults and checks are here. Reading is in `config_io.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Task = Literal["segmentation", "depth"]
TASKS: tuple[Task, ...] = ("segmentation", "depth")
"""The order is the row order of the task table: id 0 = segmentation, id 1 = depth (eq. 1)."""

Guidance = Literal["constant", "dynamic_released", "dynamic_step"]
"""How the guidance scale goes over the steps; see diffusion/guidance.py."""

LoraTarget = Literal["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
"""Linears of a block that can get adapters, by the names that diffusers and peft give them."""

GLOBAL_BATCH = "global_batch"
"""In `run.allow_changes`: samples per optimizer step, which is no setting but follows from some."""

FAMILIES = ("tiny", "2b", "5b", "1.5-5b")


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line, written for the user.

    Attributes:
        keys: Dotted keys concerned, so that the reader can say which file each one came from.
    """

    def __init__(self, message: str, *, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.keys = keys


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network. Numbers of all families but `tiny` are those of released CogVideoX weights."""

    family: Literal["tiny", "2b", "5b", "1.5-5b"] = "5b"
    """Name used in messages and file metadata; the numbers below define the network."""
    num_layers: int = 42
    hidden_size: int = 3072
    num_heads: int = 48
    """Head size hidden_size / num_heads; a multiple of 16 for rotary positions (16/24/24 of 64)."""
    time_embed_dim: int = 512
    """Size of the time embedding e_t and of each row of the task table e_d."""
    patch_size: int = 2
    """Rows and columns of latent pixels per token."""
    patch_size_t: int = 1
    """Latent frames per token: 2 in CogVideoX 1.5. Clips of another number of latent frames begin
    with copies of their first one."""
    latent_channels: int = 16
    """Channels of one group (the video, or one dense map)."""
    dense_groups: int = 1
    """Extra groups of `latent_channels` in and out: 1 in the paper, 0 = CogVideoX baseline."""
    text_dim: int = 4096
    text_length: int = 226
    """Text tokens, padded; CogVideoX attends to the padding."""
    positions: Literal["rotary", "sincos"] = "rotary"
    spatial_interpolation: float = 1.875
    """sincos only: row and column positions are divided by this."""
    task_signal: Literal["embedding", "prompt", "none"] = "embedding"
    """embedding: t_d = e_d(d) + e_t(t), eq. (1); prompt: the task is named in the text (Tab. 5)."""
    activation_checkpointing: Literal["none", "selective", "full"] = "full"
    """selective: every second layer is recomputed; full: every layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitConfig:
    """How the weights start (Tab. 10 and 11)."""

    weights: str | None = None
    """Base checkpoint: a .safetensors file, a run folder or one of its checkpoints, a SAT
    checkpoint (.pt or its folder), a diffusers folder, a hub id, or `tiny` = the weights shipped
    with us. null draws them from the seed."""
    dense_channels: Literal["duplicate", "random"] = "duplicate"
    dense_scale: float = 1.0
    """Factor on the duplicated input weights: 1 paper, 0.7071 keeps the variance, 0.5 Marigold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters trained in place of the weights, in the form of diffusers and peft."""

    rank: int = 0
    """0 = every weight is trained. Above 0: adapters, and with dense channels what is new in the
    network and has no low rank: patch projection, last linear, task table. The rest is frozen, and
    checkpoints hold what is trained; the rest comes from init.weights each time."""
    alpha: float | None = None
    """What an adapter adds is scaled by alpha / rank; null = rank."""
    targets: tuple[LoraTarget, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Linears of every block, named as in diffusers; ff.net.0.proj and ff.net.2 are the MLP."""
    weights: str | None = None
    """Adapters to begin with: a LoRA file for diffusers (pytorch_lora_weights.safetensors) or its
    folder, of this rank, alpha and these targets. null = adapters that change nothing yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoCodecConfig:
    """The frozen video autoencoder (diffusers AutoencoderKLCogVideoX)."""

    weights: str = "THUDM/CogVideoX-5b"
    """Folder, hub id, or `tiny` = the codec shipped with us."""
    subfolder: str | None = "vae"
    scale_factor: float = 0.7
    """Latents given to the network are scale_factor * z."""
    spatial_compression: int = 8
    temporal_compression: int = 4
    encode_chunks: Literal["whole", "diffusers"] = "whole"
    """whole: one pass over the clip, as the released weights were trained."""
    tiling: bool = False
    slicing: bool = True
    """Clips one after another: memory of one. Off, small clips are faster."""
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16"


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoderConfig:
    """The frozen text encoder (transformers T5EncoderModel)."""

    weights: str = "google/t5-v1_1-xxl"
    """Folder, hub id, or `tiny` = the encoder and tokenizer shipped with us."""
    unconditional: Literal["zeros", "empty"] = "zeros"
    """zeros: as CogVideoX was trained; empty: the embedding of the empty string (diffusers)."""
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16"


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """Noise schedule and training objective."""

    snr_shift: float = 1.0
    """s in abar / (s + (1 - s) abar): 1 for 5B, 3 for 2B."""
    num_train_timesteps: int = 1000
    dense_loss_weight: float = 1.0
    """Weight of the dense half against the video half (1:1 in the paper)."""
    stratified_timesteps: bool = True
    """Ranks draw from disjoint ranges of t, as the released weights were trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ColormapConfig:
    """How dense maps become colours."""

    segmentation: Literal["pixelplanes", "location_aware"] = "pixelplanes"
    min_distance: float = 0.0
    """Least RGB distance (0..441) between two entities of a clip; 0 is the paper's rule. A clip
    with too many entities gets half of it, and so on."""
    location_grid: int = 11
    """location_aware: the frame is cut into grid x grid cells, one colour each."""
    depth_inverse: Literal["paper", "midbin"] = "midbin"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What is read, and how one sample becomes one training example."""

    shards: str = ""
    """Folder of webdataset shards with manifest.json, or its http(s), s3, gs, ... address; required
    for training with `source: video`."""
    source: Literal["video", "latents"] = "video"
    """video: clips are decoded and encoded while training; latents: both were done beforehand, by
    `python -m data_loaders.latents`."""
    latents: str = ""
    """Folder that data_loaders.latents made; required with `source: latents`."""
    num_frames: int = 49
    """Frames of a clip, 4k + 1."""
    height: int = 480
    """Pixels, a multiple of spatial_compression * patch_size."""
    width: int = 720
    fps: float = 8.0
    crop: Literal["center", "random"] = "center"
    """Which part of a clip of another aspect ratio is kept; random: another one in every epoch."""
    buckets: tuple[str, ...] = ()
    """Sizes FRAMESxHEIGHTxWIDTH that batches alternate between, in place of num_frames, height and
    width: [49x480x720, 25x480x720]."""
    bucket_weights: tuple[float, ...] = ()
    """Share of samples per bucket; none = equal shares."""
    bucket_run: int = 64
    """Consecutive samples of one bucket; with a multiple of the global batch all ranks have steps
    of the same size. A multiple of the micro-batch."""
    tasks: tuple[Task, ...] = TASKS
    task_weights: tuple[float, ...] = (0.5, 0.5)
    """Share of samples per entry of `tasks` (Tab. 7); exact in every 100 samples."""
    long_caption_probability: float = 0.8
    recolourings: int = 0
    """Colourings per clip that epochs take in turn; 0 = new ones each epoch, or with cached latents
    all that the cache holds."""
    shuffle_shards: int = 16
    """Shards that are read at a time, each from front to back."""
    shuffle_run: int = 64
    """Samples of each of them that are mixed at a time."""
    decoder: Literal["pyav", "dali"] = "pyav"
    """pyav: every codec, in processes that can be ended; dali: VP9 on the CPU, H.264 on the GPU,
    and resizing on both, in the training process."""
    decode_seconds: float = 120.0
    """A process that decodes for longer is ended, and its clip tried once more, then left out."""
    num_workers: int = 2
    """Processes that read and decode; 0 = while training waits."""
    prefetch: int = 2
    """Samples that each worker prepares ahead."""
    max_bad_share: float = 0.01
    """Damaged samples are skipped, counted and logged; above this share the run stops."""
    cache_dir: str = ""
    """Where shards of an address are kept; empty = below ~/.cache."""
    cache_gb: float = 0.0
    """Shards kept there at most, 10^9 bytes; 0 = all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW; no weight decay on norms, biases and embeddings."""

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    gradient_clipping: float = 0.1
    """Largest global gradient norm; 0 = off."""
    schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up: stay, or fall linearly to 0 at train.steps."""
    warmup_steps: int = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class EMAConfig:
    """Exponential moving average of the weights."""

    enabled: bool = False
    decay: float = 0.9999
    """Ceiling of min(decay, (1 + n) / (10 + n))."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The loop."""

    steps: int = 40_000
    micro_batch_size: int = 1
    """Samples per rank and forward."""
    accumulation_steps: int = 1
    global_batch: int = 0
    """Samples per step over all ranks. 0: whatever micro_batch_size x accumulation_steps x ranks
    makes; else accumulation_steps is set to keep it on any number of ranks that divides it."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    zero_stage: Literal[1, 2, 3] = 2
    offload: Literal["none", "optimizer", "weights"] = "none"
    """What lies in the memory of the host, for GPUs that are too small; steps take longer.
    optimizer: the fp32 weights and the moments of AdamW, whose step the CPU makes; weights: with
    zero_stage 3, the weights as well."""
    reduce_bucket_elements: int = 200_000_000
    caption_dropout: float = 0.1
    """Probability that the text embedding is replaced by zeros (classifier-free guidance)."""
    max_bad_steps: int = 3
    """Steps in a row with a non-finite loss or gradient that are skipped before the run stops;
    never silently."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """Several processes on the same samples.

    Processes = tensor_size x sequence_size x data ranks; the global batch counts data ranks alone.
    """

    sequence_size: int = 1
    """Processes that share the tokens of every sample (Ulysses), for long clips: activations are
    divided by it. Divides the heads: 48 by 2, 3, 4, 6, 8, .., 30 by 2, 3, 5, 6, .."""
    tensor_size: int = 1
    """Processes that share every layer's weights (SAT's model parallel), on one machine if it can
    be: they talk four times in every layer. Divides the heads."""

    @property
    def size(self) -> int:
        """Processes that work on the same samples."""
        return self.tensor_size * self.sequence_size


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """Saving; to resume, run the same command again."""

    every_steps: int = 500
    keep_last: int = 2
    """Older checkpoints are deleted when so many complete ones are there; 0 = keep all."""
    keep_every: int = 0
    """Checkpoints of these steps (multiples) are never deleted; 0 = none. A multiple of
    every_steps."""
    asynchronous: bool = True
    """Files are written while training goes on, and a checkpoint counts at the end of the step in
    which the last of them is on the disk. Ranks hold what they write in host memory until then: 4
    bytes per trained number, for each of the 3 to 4 files that falls to a rank. Off, and where
    memory is short, training waits, and a rank holds one file at a time. Either way the bytes are
    the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """metrics.jsonl, events.jsonl and heartbeat.json always; wandb when asked."""

    every_steps: int = 20
    heartbeat_seconds: int = 10
    """Between two writings of heartbeat.json: step, loss, time left; 0 = each step."""
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "udpdiff"


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """What is looked at during training; a failure is logged and never ends the run."""

    every_steps: int = 0
    """0 = never. Sample videos where there are `prompts`, losses where there are `shards` or
    `latents`."""
    prompts: tuple[str, ...] = ()
    """Of sample videos, each with every task."""
    seeds: tuple[int, ...] = ()
    """Sample videos of each prompt and task; none = one, of the run's seed."""
    num_steps: int = 20
    """Sampling steps of a sample video."""
    measures: tuple[str, ...] = ()
    """What sample videos are scored by, named as in an evaluation; only measures that judge each
    video by itself."""
    evaluation: str | None = None
    """Value file of an evaluation, for settings and weights of the measures; null = defaults."""
    shards: str = ""
    """Folder of held-out shards, or its address, whose losses are followed: by task, half (video,
    dense) and quartile of the timestep, under noise that stays the same."""
    latents: str = ""
    """In place of `shards`: a folder that data_loaders.latents made of them."""
    clips: int = 16
    """Clips of them, each with every task at the middle of every quartile. 16 clips with 2 tasks
    took the time of 6 to 9 steps of 4 clips (tiny, one process)."""


def makes_sample_videos(config: Config) -> bool:
    """Whether training makes sample videos, for which it needs both encoders."""
    return config.validation.every_steps > 0 and bool(config.validation.prompts)


def follows_fixed_noise(config: Config) -> bool:
    """Whether training measures losses of held-out clips."""
    validation = config.validation
    return validation.every_steps > 0 and bool(validation.shards or validation.latents)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """One sampling run."""

    sampler: Literal["dpmpp_2m_sde", "ddim"] = "dpmpp_2m_sde"
    num_steps: int = 50
    guidance: Guidance = "dynamic_released"
    guidance_scale: float = 6.0
    schedule: Literal["diffusers", "sat"] = "diffusers"
    """diffusers: the training table; sat: re-anchored on the sampled steps, as SAT releases."""
    guidance_size: int = 1
    """sample.py on several processes. 2 = one computes the branch with the prompt and one that
    without. With any size above 1 the processes of a sample decode video and map side by side; what
    is left of them makes other samples."""
    sequence_size: int = 1
    """Processes that share the tokens of a sample, as parallel.sequence_size in training."""
    tensor_size: int = 1
    """Processes that share the weights, as parallel.tensor_size in training."""

    @property
    def parallel(self) -> ParallelConfig:
        """Processes that go through the network together."""
        return ParallelConfig(sequence_size=self.sequence_size, tensor_size=self.tensor_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Where a run writes."""

    output: str = ""
    """Run folder: config.yaml, metrics.jsonl, checkpoints/; required for training."""
    allow_changes: tuple[str, ...] = ()
    """Settings that may differ from those of the checkpoint that the run goes on from, though they
    alter training: [optimizer.lr]. `global_batch` stands for the samples per step over all
    ranks."""
    preflight: bool = True
    """Before the first step all machines are compared, and asked for what the run needs. false: for
    machines that are meant to differ."""
    hang_minutes: float = 20.0
    """Without a finished step for so long every rank prints its stack and the run ends, so that it
    can be started again; longer than the slowest step and save, and, at the start, than reading a
    checkpoint and building the network take. 0 = never. Encoders and validation are left out; ranks
    wait for each other for 10 minutes more than this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything that defines a run."""

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    codec: VideoCodecConfig = field(default_factory=VideoCodecConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    colormap: ColormapConfig = field(default_factory=ColormapConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    run: RunConfig = field(default_factory=RunConfig)


def global_batch(config: Config, *, processes: int) -> int:
    """Samples of an optimizer step, over all data ranks and micro-batches."""
    data_ranks = max(1, processes // config.parallel.size)
    return config.train.micro_batch_size * config.train.accumulation_steps * data_ranks
