"""The run config of every recipe. Importing this is cheap: a wrong config is an error at once."""

import dataclasses

from spirit_jax import limits
from spirit_jax.data.configs import AugmentConfig, DataConfig, F0Config, SourceConfig
from spirit_jax.errors import InputError
from spirit_jax.models.configs import LlamaConfig, MelConfig, PitchConfig, StyleConfig, TrunkConfig
from spirit_jax.models.vocoder_configs import DiscriminatorConfig, HifiGanConfig
from spirit_jax.training.configs import (
    EmaConfig,
    KMeansConfig,
    LoopConfig,
    LoraConfig,
    OptimizerConfig,
    RecipeConfig,
    StepConfig,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LmRunConfig(LoopConfig):
    """A training run of the language model; what `LoopConfig` has, and this.

    Attributes:
      model: the model folder to start from; its vocabulary and tokenizer are used.
      random_init: start from random parameters, with the vocabulary and tokenizer of `model`.
      sizes: of a model that starts from random parameters; those of `model` by default.
      compute_dtype: "float32" or "bfloat16"; master weights are float32.
      scan_layers, remat, attention: see `Llama`.
      compiler_options: of XLA, for the training step, by name.
      topology: of the TPU slice that this is for, such as "v5e:16x16"; for `tpu/plan.py`.
      seed: of random parameters.
      eval_sources: held-out corpora, for evaluation (see `eval_every`).
      eval_batches: how many batches of each an evaluation takes, the same every time.
    """

    model: str
    random_init: bool = False
    sizes: LlamaConfig | None = None
    compute_dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "none"
    attention: str = "auto"
    compiler_options: dict[str, str] = dataclasses.field(default_factory=dict)
    topology: str = ""
    seed: int = 0
    data: DataConfig = DataConfig()
    eval_sources: tuple[SourceConfig, ...] = ()
    eval_batches: int = 4
    optimizer: OptimizerConfig = OptimizerConfig()
    step: StepConfig = StepConfig()
    lora: LoraConfig = LoraConfig()

    def __post_init__(self):
        super().__post_init__()
        limits.check_numbers(self, seed=limits.SEED)
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise InputError(
                f"compute_dtype is '{self.compute_dtype}', expected float32 or bfloat16."
            )
        if self.sizes is not None and not self.random_init:
            raise InputError("sizes are those of a random start: set random_init too.")
        if self.random_init and self.lora.rank:
            raise InputError("lora adapts a model that is there: it cannot go with random_init.")
        if self.data.batch_rows % self.step.accumulate:
            raise InputError(
                f"batch_rows is {self.data.batch_rows}, which {self.step.accumulate} parts "
                "(step.accumulate) do not divide."
            )
        if self.eval_batches < 1:
            raise InputError("eval_batches must be at least 1.")


MFCC = "mfcc"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitsRunConfig(RecipeConfig):
    """A training of HuBERT.

    Attributes:
      network: the trunk. With `start`, that of the folder is taken instead, and where this one has
        more layers, random ones follow.
      first_filters: "random", or "gabor" for band-pass filters (`filters`), which the first conv
        begins from unless it comes from `start`.
      targets: "mfcc", or the folder of a HuBERT, clusters of whose features are predicted.
      target_layer: of that HuBERT, counted from 1; 0 for its last.
      target_clusters: how many there are.
      reference: a manifest of one voice. Clusters are of its recordings, and a recording whose text
        is one of theirs has their labels (`parallel`); "" for the clusters of all, each their own.
      aligner: the folder of a HuBERT by whose features recordings and their references are aligned;
        "" for the features that clusters are of.
      kmeans: how clusters are found, those to predict and those that are exported.
      embedding_size: width of the labels' embeddings.
      temperature: cosines are divided by it.
      mask_start: the share of frames at which a masked span begins.
      mask_span: its length in frames. The paper's 10 frames are 0.2 s, 5 at 25 frames a second.
      unmasked_weight: of the loss on frames that are not masked.
      noise: probability that a row is heard with another recording or coloured noise, while its
        labels stay (as in WavLM, arXiv 2110.13900).
      noise_db: by how much the row is louder, the least and the most.
      segment_seconds: of audio that a row has.
      layer: whose output the exported network gives, counted from 1; 0 for the last.
      clusters: units of the exported quantizer.
    """

    recipe: str = "units"
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=5e-4, schedule="linear", beta2=0.98, eps=1e-6, weight_decay=0.01
    )
    network: TrunkConfig = TrunkConfig()
    first_filters: str = "random"
    targets: str = MFCC
    target_layer: int = 0
    target_clusters: int = 100
    reference: str = ""
    aligner: str = ""
    kmeans: KMeansConfig = KMeansConfig()
    embedding_size: int = 256
    temperature: float = 0.1
    mask_start: float = 0.08
    mask_span: int = 10
    unmasked_weight: float = 0.0
    noise: float = 0.0
    noise_db: tuple[float, float] = (5.0, 20.0)
    segment_seconds: float = 4.0
    layer: int = 0
    clusters: int = 500

    def __post_init__(self):
        super().__post_init__()
        whole = (self.target_clusters, self.embedding_size, self.mask_span, self.clusters)
        if min(whole) < 1:
            raise InputError(
                "target_clusters, clusters, embedding_size and mask_span must be at least 1."
            )
        if self.first_filters not in ("random", "gabor"):
            raise InputError(f"first_filters is '{self.first_filters}', expected random or gabor.")
        if self.first_filters == "gabor":
            channels = self.network.conv_layers[0][0]
            if channels < 4 or channels % 2:
                raise InputError(f"Gabor filters are pairs; the first conv has {channels}.")
        if self.temperature <= 0 or self.segment_seconds <= 0 or self.unmasked_weight < 0:
            raise InputError(
                "temperature and segment_seconds must be above 0, unmasked_weight 0 or more."
            )
        if not 0 < self.mask_start <= 1 or not 0 <= self.noise <= 1:
            raise InputError("mask_start must be above 0 and at most 1, noise 0 to 1.")
        if len(self.noise_db) != 2 or self.noise_db[0] > self.noise_db[1]:
            raise InputError(f"noise_db is {self.noise_db}, expected the least and the most.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizerRunConfig(RecipeConfig):
    """A training of the quantizer; `start` is a folder with `hubert` and `quantizer`.

    Attributes:
      augment: how recordings are changed.
      hidden_sizes: widths between the layers of the classifier. Where the quantizer of `start` is
        one already it is gone on with, and these are not used.
      train_encoder_layers: so many of the encoder's last layers are trained as well.
      segment_seconds: of unchanged audio that a row has.
    """

    recipe: str = "quantizer"
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=5e-4, schedule="linear", beta2=0.98, weight_decay=0.01
    )
    augment: AugmentConfig = AugmentConfig()
    hidden_sizes: tuple[int, ...] = (512, 512)
    train_encoder_layers: int = 0
    segment_seconds: float = 4.0
    eval_recordings: int = 32

    def __post_init__(self):
        super().__post_init__()
        if not self.start:
            raise InputError("start is empty; give a folder that has hubert and quantizer.")
        if self.segment_seconds <= 0 or self.train_encoder_layers < 0:
            raise InputError("segment_seconds must be above 0, train_encoder_layers 0 or more.")


MEANS = ("speaker", "utterance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PitchRunConfig(RecipeConfig):
    """A training of the pitch VQ-VAE.

    Attributes:
      network: sizes; with `start`, those of that folder are taken instead.
      f0: how F0 is found.
      ema: how the codebook moves.
      segment_frames: of F0 that a row has, at 200 a second.
      mean: what is subtracted from F0: the "speaker"'s over the corpus (the paper), or the
        "utterance"'s, which is what `SpeechTokenizer` does. Recordings without a speaker: theirs.
      scale: in Hz, an error of F0 that costs as much as a wrong voicing flag. The paper's loss is
        that of 1, with which voicing is hardly learnt.
      commitment: weight of the latents' distance to their codes; times 1 / scale ** 2, as F0's.
      epoch_decay: of the learning rate, after every epoch.
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


LABELS = ("features", "manifest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleRunConfig(RecipeConfig):
    """A training of the style encoder.

    Attributes:
      network: sizes, and how many styles; with `start`, those of that folder are taken instead.
      f0: how F0 is found, for features.
      labels: "features", clusters of each second's features, or "manifest", a style for every
        (speaker, style) that the manifests have.
      segment_units: seconds of a recording that a row has.
    """

    recipe: str = "style"
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-4, schedule="linear", warmup_steps=100, beta2=0.98, weight_decay=0.01
    )
    network: StyleConfig = StyleConfig()
    f0: F0Config = F0Config()
    labels: str = "features"
    segment_units: int = 4
    eval_recordings: int = 128

    def __post_init__(self):
        super().__post_init__()
        if self.labels not in LABELS:
            raise InputError(f"labels is '{self.labels}', expected {' or '.join(LABELS)}.")
        if self.segment_units < 1:
            raise InputError(f"segment_units is {self.segment_units}, expected at least 1.")


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


BY_RECIPE = {
    "lm": LmRunConfig,
    "units": UnitsRunConfig,
    "quantizer": QuantizerRunConfig,
    "pitch": PitchRunConfig,
    "style": StyleRunConfig,
    "vocoder": VocoderRunConfig,
}
