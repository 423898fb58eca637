"""The run config of the vocoder's training. Importing this is cheap: no JAX."""

import dataclasses

from spirit_jax.data.configs import F0Config
from spirit_jax.errors import InputError
from spirit_jax.models.configs import MelConfig
from spirit_jax.models.vocoder_configs import DiscriminatorConfig, HifiGanConfig
from spirit_jax.training.configs import OptimizerConfig, RecipeConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderRunConfig(RecipeConfig):
    """A training of a vocoder.

    Attributes:
      tokenizer: folder or name of the speech tokenizer whose units are to be spoken; it needs no
        vocoder.
      speakers: the voices to learn, as the recordings name them. With `start`, those that the
        network does not have yet are added to its own.
      style_ids: whether the manner of a recording is an input as well, by its name. With `start`,
        as the network has it.
      default_speaker, default_style: the voice and the manner that the vocoder speaks in if none is
        asked for; "" for the first, or with `start` that network's. `default_style` is also that of
        recordings that do not say theirs.
      network: sizes. How many speakers and manners there are, and their names, comes from the
        recordings. With `start`, the network of that folder is taken instead.
      discriminators: sizes of the judges.
      mel: the spectrogram that recorded and made waves are compared by.
      segment_units: that a row speaks; 14 are the 8,960 samples of the paper.
      duration_runs: units without repeats, whose durations a row predicts.
      adversarial_from: steps before the discriminators take part; the number of steps for
        never. Without them a step takes a fraction of the time.
      f0: how the F0 is found that a network with a harmonic source learns.
      mel_weight, feature_weight, duration_weight, f0_weight: of the losses, beside the adversarial
        one.
      stft_weight: of the distance of log magnitudes at several resolutions; 0 for none (the paper).
      stft_sizes: their DFT sizes, in samples.
      stft_floor: magnitudes per sample of a window below it count as much. It and `mel.floor` keep
        a recording's background noise, which nothing could predict, from ruling the losses.
      envelope_weight: of the squared distance of log spectra in bands that are wider than a voice's
        harmonics are apart; 0 for none (the paper).
      envelope: these spectra.
      epoch_decay: of the learning rate, after every epoch.
    """

    recipe: str = "vocoder"
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=2e-4, beta1=0.8, beta2=0.99, weight_decay=0.01, clip_norm=0.0
    )
    tokenizer: str
    speakers: tuple[str, ...]
    style_ids: bool = False
    default_speaker: str = ""
    default_style: str = ""
    network: HifiGanConfig = HifiGanConfig()
    discriminators: DiscriminatorConfig = DiscriminatorConfig()
    mel: MelConfig = MelConfig()
    segment_units: int = 14
    duration_runs: int = 64
    adversarial_from: int = 0
    mel_weight: float = 45.0
    feature_weight: float = 2.0
    duration_weight: float = 1.0
    f0: F0Config = F0Config()
    f0_weight: float = 1.0
    stft_weight: float = 0.0
    stft_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    stft_floor: float = 0.0
    envelope_weight: float = 0.0
    envelope: MelConfig = MelConfig(n_fft=512, hop=128, num_mels=24)
    epoch_decay: float = 0.999
    eval_recordings: int = 16

    def __post_init__(self):
        super().__post_init__()
        if not self.speakers or len(set(self.speakers)) < len(self.speakers):
            raise InputError(f"speakers are {list(self.speakers)}; expected names, each once.")
        if min(self.segment_units, self.duration_runs) < 1:
            raise InputError("segment_units and duration_runs must be at least 1.")
        if self.adversarial_from < 0:
            raise InputError(f"adversarial_from is {self.adversarial_from}, expected 0 or more.")
        weights = self.mel_weight, self.feature_weight, self.duration_weight, self.f0_weight
        weights += self.stft_weight, self.stft_floor, self.envelope_weight
        if min(weights) < 0 or not 0 < self.epoch_decay <= 1:
            raise InputError("Weights must be 0 or more, epoch_decay above 0 and at most 1.")
        if not self.stft_sizes or any(size < 8 or size % 8 for size in self.stft_sizes):
            raise InputError(f"stft_sizes are {list(self.stft_sizes)}; expected multiples of 8.")
        longest = max(self.mel.n_fft, self.envelope.n_fft, *self.stft_sizes)
        if self.segment_units * self.network.code_hop < longest // 2:
            raise InputError(
                f"segment_units is {self.segment_units}, too short for spectra of {longest}."
            )
