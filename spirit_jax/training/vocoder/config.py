"""The run config of the vocoder's training. Importing this does not import JAX."""

import dataclasses

from spirit_jax.data.configs import F0Config
from spirit_jax.errors import InputError
from spirit_jax.models.speech_configs import MelConfig
from spirit_jax.models.vocoder_configs import DiscriminatorConfig, HifiGanConfig
from spirit_jax.training.configs import OptimizerConfig, RecipeConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderRunConfig(RecipeConfig):
    """The run config of the vocoder; see `RecipeConfig` for its other fields.

    Attributes:
      tokenizer: folder or name of the speech tokenizer that computes units; it needs no vocoder.
      speakers: names of speakers, as in the manifest. With `start`, new ones are added to those of
        the network.
      style_ids: whether the style of a recording is an input. With `start`, as in that network.
      default_speaker, default_style: speaker and style of the exported vocoder if none is
        requested; "" for the first one, or with `start` for that network's. `default_style` is also
        used for recordings without a style.
      network: sizes; with `start`, the config of that network is used. The numbers and names of
        speakers and styles come from the recordings.
      discriminators: sizes of the discriminators.
      mel: the log-mel spectrogram of the reconstruction loss.
      segment_units: units of the segment that a row generates; 14 are the 8,960 samples of the
        paper.
      duration_runs: units (without repeats) of a row whose durations are predicted.
      adversarial_from: number of steps before the discriminators are used; the number of steps for
        no discriminators. Steps without them take a fraction of the time.
      f0: how F0 is estimated, for a network with a harmonic source.
      mel_weight, feature_weight, duration_weight, f0_weight: weights of losses; the adversarial
        loss has weight 1.
      stft_weight: weight of the L1 distance of log magnitudes at several resolutions; 0 for none
        (the paper).
      stft_sizes: their DFT sizes, in samples.
      stft_floor: lower bound of magnitudes, per sample of a window. Like `mel.floor` it keeps
        background noise, which cannot be predicted, from dominating the losses.
      envelope_weight: weight of the squared distance of log spectra in wide bands, which do not
        resolve harmonics; 0 for none (the paper).
      envelope: the spectrogram of these bands.
      epoch_decay: factor of the learning rate after every epoch.
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
                f"segment_units is {self.segment_units}, too short for a DFT of {longest} samples."
            )
