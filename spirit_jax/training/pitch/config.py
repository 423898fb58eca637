"""The run config of the pitch VQ-VAE's training. Importing this does not import JAX."""

import dataclasses

from spirit_jax.data.configs import F0Config
from spirit_jax.errors import InputError
from spirit_jax.models.speech_configs import PitchConfig
from spirit_jax.training.configs import EmaConfig, OptimizerConfig, RecipeConfig

MEANS = ("speaker", "utterance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PitchRunConfig(RecipeConfig):
    """The run config of the pitch VQ-VAE; see `RecipeConfig` for its other fields.

    Attributes:
      network: sizes; with `start`, the config of that network is used.
      f0: how F0 is estimated.
      ema: updates of the codebook.
      segment_frames: F0 frames of a row, at 200 a second.
      mean: the mean that is subtracted from F0: that of the "speaker" over the corpus (the paper),
        or of the "utterance", as in `SpeechTokenizer`. It is that of the utterance for recordings
        without a speaker.
      scale: F0 error in Hz with the same loss as a wrong voicing flag. It is 1 in the paper, with
        which voicing is hardly learnt.
      commitment: weight of the commitment loss, which is divided by scale ** 2 like the loss of F0.
      epoch_decay: factor of the learning rate after every epoch.
    """

    recipe: str = "pitch"
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=2e-4, beta1=0.8, beta2=0.99, weight_decay=0.01, clip_norm=0.0
    )
    network: PitchConfig = PitchConfig()
    f0: F0Config = F0Config()
    ema: EmaConfig = EmaConfig()
    segment_frames: int = 208
    mean: str = "speaker"
    scale: float = 40.0
    commitment: float = 0.02
    epoch_decay: float = 0.999

    def __post_init__(self):
        super().__post_init__()
        if self.mean not in MEANS:
            raise InputError(f"mean is '{self.mean}', expected {' or '.join(MEANS)}.")
        if self.segment_frames < 1:
            raise InputError(f"segment_frames is {self.segment_frames}, expected at least 1.")
        if self.scale <= 0 or self.commitment < 0 or not 0 < self.epoch_decay <= 1:
            raise InputError(
                "scale must be above 0, commitment 0 or more, epoch_decay above 0 and at most 1."
            )
