"""Configs that recipes share. Importing this does not import JAX."""

import dataclasses
import math
from typing import TYPE_CHECKING

from spirit_jax import files, limits
from spirit_jax.data.configs import SpeechDataConfig
from spirit_jax.errors import InputError

if TYPE_CHECKING:
    import jax


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis; one may be -1, for all remaining devices.

    Attributes:
      data: replicas; on several slices a multiple of their number.
      fsdp: parts of the parameters and of the batch.
      tensor: parts of heads, MLP and vocabulary.
      slices: number of slices; 0 for what the TPUs report. See `sharding.make_mesh`.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    slices: int = 0

    def make(self, devices: list["jax.Device"]) -> "jax.sharding.Mesh":
        """The mesh; raises `InputError` if the sizes do not fit the number of devices."""
        from spirit_jax import sharding

        sizes = {name: getattr(self, name) for name in sharding.MESH_AXES}
        known = math.prod(size for size in sizes.values() if size > 0)
        free = [name for name, size in sizes.items() if size == -1]
        if len(free) == 1 and len(devices) % known == 0:
            sizes[free[0]] = len(devices) // known
        if min(sizes.values()) < 1:
            raise InputError(f"A mesh of {sizes} does not divide {len(devices)} devices.")
        return sharding.make_mesh(**sizes, devices=devices, slices=self.slices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Shared configuration of all trainings: length, outputs and devices.

    Attributes:
      recipe: the training, a name in `training.RECIPES`.
      run_dir: folder for checkpoints and metrics; a stopped run resumes from it.
      steps: number of steps.
      checkpoint_every: steps between checkpoints; 0 for only one, after the last step.
      checkpoint_minutes: also saves a checkpoint after this many minutes; 0 for never.
      keep: how many of the newest checkpoints are kept.
      eval_every: steps between evaluations; 0 for only one, after the last step.
      profile_at: first step of a profile, which is written to RUN_DIR/profile; 0 for none.
      profile_steps: number of steps in the profile.
      stall_minutes: a step that takes longer ends the process, so that a supervisor can start the
        run again; 0 for never. See `watchdog`.
      mesh: the device mesh.
    """

    recipe: str = "lm"
    run_dir: str
    steps: int = 100
    checkpoint_every: int = 100
    checkpoint_minutes: float = 0.0
    keep: int = 3
    eval_every: int = 0
    profile_at: int = 0
    profile_steps: int = 3
    stall_minutes: float = 0.0
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        is_bucket = files.is_bucket(self.run_dir)
        if "://" in self.run_dir and not is_bucket:
            raise InputError(
                f"run_dir is '{self.run_dir}', which is neither a folder nor that of a "
                "bucket, such as gs://BUCKET/FOLDER."
            )
        if is_bucket and files.as_path(self.run_dir).scheme not in CHECKPOINT_SCHEMES:
            raise InputError(
                f"run_dir is '{self.run_dir}'; checkpoints are written to local folders, "
                f"{' and '.join(f'{scheme}://' for scheme in CHECKPOINT_SCHEMES)} only."
            )
        if is_bucket and self.profile_at:
            raise InputError("A profile cannot be written to a bucket; give a local run_dir.")
        if min(self.steps, self.keep, self.profile_steps) < 1:
            raise InputError("steps, keep and profile_steps must be at least 1.")
        names = ("checkpoint_every", "checkpoint_minutes", "eval_every", "profile_at")
        for name in (*names, "stall_minutes"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 0.")


CHECKPOINT_SCHEMES = ("gs", "s3")  # that Orbax and TensorStore both have
SCHEDULES = ("constant", "linear", "cosine")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and the learning rate schedule.

    Attributes:
      learning_rate: the peak learning rate.
      schedule: after the warm-up: "constant" (the paper), or "linear" or "cosine" decay to
        `final_share` of the peak at the last step.
      warmup_steps: steps of linear warm-up from 0.
      final_share: see `schedule`.
      beta1, beta2, eps, weight_decay: of AdamW (arXiv 1711.05101); vectors have no weight decay.
      clip_norm: gradients are clipped to this global norm; 0 for no clipping.
    """

    learning_rate: float = 3e-5
    schedule: str = "constant"
    warmup_steps: int = 0
    final_share: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise InputError(
                f"schedule is '{self.schedule}', expected one of {', '.join(SCHEDULES)}."
            )
        if self.learning_rate <= 0 or self.warmup_steps < 0 or self.clip_norm < 0:
            raise InputError("learning_rate must be above 0; warmup_steps and clip_norm 0 or more.")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and 0 <= self.final_share <= 1):
            raise InputError("beta1 and beta2 must be 0 or more and below 1; final_share 0 to 1.")
        if min(self.eps, self.weight_decay) < 0:
            raise InputError("eps and weight_decay must be 0 or more.")


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """How a step of the language model is computed.

    Attributes:
      accumulate: micro-batches of a batch; their gradients are accumulated for one update.
      loss_chunk: tokens whose logits are in memory at once on a device; 0 for all.
      z_loss: weight of the z-loss, the squared log of the softmax's denominator.
      skip_norm: steps with a larger gradient norm are skipped; 0 skips only non-finite ones.
    """

    accumulate: int = 1
    loss_chunk: int = 1024
    z_loss: float = 0.0
    skip_norm: float = 0.0

    def __post_init__(self):
        if self.accumulate < 1 or min(self.loss_chunk, self.z_loss, self.skip_norm) < 0:
            raise InputError(
                "step.accumulate must be at least 1; loss_chunk, z_loss and skip_norm 0 or more."
            )


LINEAR = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """LoRA adapters (arXiv 2106.09685).

    Attributes:
      rank: of the adapters; 0 for no LoRA.
      alpha: adapters are scaled by alpha / rank.
      layers: names of the adapted matrices, among q, k, v, o, gate, up and down.
    """

    rank: int = 0
    alpha: float = 16.0
    layers: tuple[str, ...] = LINEAR

    def __post_init__(self):
        if self.rank < 0 or self.alpha <= 0:
            raise InputError("lora: rank must be 0 or more, and alpha above 0.")
        for name in self.layers:
            if name not in LINEAR:
                raise InputError(f"lora: there is no layer '{name}', only {', '.join(LINEAR)}.")


@dataclasses.dataclass(frozen=True)
class EmaConfig:
    """Updates of a codebook by exponential moving averages.

    Attributes:
      decay: of the moving averages, per step.
      restart_below: a code to which fewer vectors a step are assigned, on average, counts as dead
        and is re-initialised; 0 for never. Set it well below the average over all codes.
    """

    decay: float = 0.99
    restart_below: float = 1.0

    def __post_init__(self):
        if not 0 <= self.decay < 1 or self.restart_below < 0:
            raise InputError("ema.decay must be from 0 to below 1, ema.restart_below 0 or more.")


STARTS = ("k-means++", "random")


@dataclasses.dataclass(frozen=True)
class KMeansConfig:
    """Settings of k-means.

    Attributes:
      frames: size of the sample of vectors that k-means is fitted to.
      start: initialisation, "k-means++" or "random" (vectors drawn at random).
      iterations: largest number of iterations; it ends earlier when no assignment changes.
      seed: of all random draws.
    """

    frames: int = 200_000
    start: str = "k-means++"
    iterations: int = 50
    seed: int = 0

    def __post_init__(self):
        limits.check_numbers(self, seed=limits.SEED)
        if self.start not in STARTS:
            raise InputError(f"kmeans.start is '{self.start}', expected {' or '.join(STARTS)}.")
        if min(self.frames, self.iterations) < 1:
            raise InputError("kmeans.frames and iterations must be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeConfig(LoopConfig):
    """Shared configuration of the trainings of speech networks; each recipe adds its own fields.

    Attributes:
      data: the recordings.
      optimizer: optimizer and learning rate.
      seed: of the initial parameters and of random draws on the devices.
      start: folder of a network to start from, or of a model that has it, such as
        "spirit-tiny-base"; "" for random initialisation.
      max_recordings: number of recordings to train on, drawn at random; 0 for all.
      eval_recordings: number of held-out recordings, drawn at random; 0 for all.
    """

    data: SpeechDataConfig = SpeechDataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = 0
    start: str = ""
    max_recordings: int = 0
    eval_recordings: int = 64

    def __post_init__(self):
        super().__post_init__()
        limits.check_numbers(self, seed=limits.SEED)
        if min(self.max_recordings, self.eval_recordings) < 0:
            raise InputError("max_recordings and eval_recordings must be 0 or more.")
