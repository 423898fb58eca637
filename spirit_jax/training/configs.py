"""What run configs of several recipes consist of. Importing this is cheap: JAX comes later."""

import dataclasses
import math
from typing import TYPE_CHECKING

from spirit_jax import limits
from spirit_jax.data.configs import SpeechDataConfig
from spirit_jax.errors import InputError

if TYPE_CHECKING:
    import jax


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; one may be -1, for as many as are left."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def make(self, devices: list["jax.Device"]) -> "jax.sharding.Mesh":
        """The mesh; raises `InputError` where the sizes do not make up the devices."""
        from spirit_jax import sharding

        sizes = dict(vars(self))
        known = math.prod(size for size in sizes.values() if size > 0)
        free = [name for name, size in sizes.items() if size == -1]
        if len(free) == 1 and len(devices) % known == 0:
            sizes[free[0]] = len(devices) // known
        if min(sizes.values()) < 1:
            raise InputError(f"A mesh of {sizes} does not divide {len(devices)} devices.")
        return sharding.make_mesh(**sizes, devices=devices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long a training goes on, and what it leaves.

    Attributes:
      recipe: what is trained, a name in `training.RECIPES`.
      run_dir: where checkpoints and metrics go; a run that was stopped goes on from there.
      steps: updates in all.
      checkpoint_every: steps between checkpoints; 0 for none between.
      checkpoint_minutes: a checkpoint as well when this much time has gone by; 0 for never.
      keep: how many checkpoints are kept.
      eval_every: steps between evaluations; 0 for none. The last step is evaluated as well.
      profile_at: step from which a profile is taken, to RUN_DIR/profile; 0 for none.
      profile_steps: how many steps it takes in.
      mesh: how devices are laid out.
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
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        if "://" in self.run_dir:
            raise InputError(
                f"run_dir is '{self.run_dir}', which is no folder; mount the bucket (with gcsfuse) "
                "and give its folder."
            )
        if min(self.steps, self.keep, self.profile_steps) < 1:
            raise InputError("steps, keep and profile_steps must be at least 1.")
        least = min(
            self.checkpoint_every, self.checkpoint_minutes, self.eval_every, self.profile_at
        )
        if least < 0:
            raise InputError(
                "checkpoint_every, checkpoint_minutes, eval_every and profile_at must be at least "
                "0."
            )


SCHEDULES = ("constant", "linear", "cosine")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move.

    Attributes:
      learning_rate: at its highest.
      schedule: after the warm-up "constant" (the paper), or falling by a "linear" or "cosine" curve
        to `final_share` of it at the last step.
      warmup_steps: over which it rises from 0.
      final_share: see `schedule`.
      beta1, beta2, eps, weight_decay: of AdamW (arXiv 1711.05101); vectors do not decay.
      clip_norm: gradients of a larger norm are scaled to this; 0 for never.
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


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """How a step is computed.

    Attributes:
      accumulate: parts that a batch is taken in, one after another, with one update.
      loss_chunk: tokens whose logits a device holds at once; 0 for all.
      z_loss: weight of the squared log of the softmax's denominator.
      skip_norm: a step whose gradient norm is above this, or is not finite, changes nothing; 0 to
        skip only what is not finite.
    """

    accumulate: int = 1
    loss_chunk: int = 1024
    z_loss: float = 0.0
    skip_norm: float = 0.0

    def __post_init__(self):
        if self.accumulate < 1 or min(self.loss_chunk, self.z_loss, self.skip_norm) < 0:
            raise InputError("accumulate must be at least 1, and the rest of the step 0 or more.")


LINEAR = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """What is adapted.

    Attributes:
      rank: of the products; 0 for no LoRA.
      alpha: the products count alpha / rank times.
      layers: names of the matrices, of q, k, v, o, gate, up and down.
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
    """How a codebook moves.

    Attributes:
      decay: of the moving averages, a step.
      restart_below: a code that is given fewer vectors a step than this, on average, begins anew;
        well below what a step gives to a code of average use, or 0 for never.
    """

    decay: float = 0.99
    restart_below: float = 1.0

    def __post_init__(self):
        if not 0 <= self.decay < 1 or self.restart_below < 0:
            raise InputError("ema.decay must be from 0 to below 1, ema.restart_below 0 or more.")


STARTS = ("k-means++", "random")


@dataclasses.dataclass(frozen=True)
class KMeansConfig:
    """How centroids are found.

    Attributes:
      frames: vectors that centroids are found from, a sample of what there is.
      start: "k-means++" draws first centroids that are far from each other, "random" any vectors.
      iterations: at most so many; it ends when no vector changes its centroid.
      seed: of what is drawn.
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
    """What every training of a speech network is told; each recipe adds to it.

    Attributes:
      data: the recordings.
      optimizer: how parameters move.
      seed: of first parameters and of what is drawn on the devices.
      start: folder of a network to go on from (converted, or trained before), or of a model that
        has it, such as "spirit-tiny-base"; "" for random.
      max_recordings: so many, drawn at random, are used; 0 for all.
      eval_recordings: the same, of those held out.
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
