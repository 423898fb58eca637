"""The run config of HuBERT's training. Importing this does not import JAX."""

import dataclasses

from spirit_jax.errors import InputError
from spirit_jax.models.speech_configs import TrunkConfig
from spirit_jax.training.configs import KMeansConfig, OptimizerConfig, RecipeConfig

MFCC = "mfcc"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubertRunConfig(RecipeConfig):
    """The run config of HuBERT; see `RecipeConfig` for its other fields.

    Attributes:
      network: config of the trunk. With `start`, that of the start network is used; if this one has
        more layers, they are added with random parameters.
      first_filters: initialisation of the first conv, "random" or "gabor" (see `gabor`); parameters
        of `start` take precedence.
      targets: "mfcc", or the folder of a HuBERT; targets are clusters of these features.
      target_layer: layer of that HuBERT, from 1; 0 for its last.
      target_clusters: number of target clusters.
      reference: manifest of recordings of one speaker. Clusters are fitted to them, and a recording
        with the text of one of them gets its labels (`reference_targets`); "" for clusters of the
        training recordings.
      aligner: folder of a HuBERT whose features align recordings with references; "" for the
        features of `targets`.
      kmeans: settings of k-means, for target clusters and the exported quantizer.
      embedding_size: width of the cluster embeddings.
      temperature: of the softmax over cosine similarities.
      mask_start: probability that a masked span starts at a frame.
      mask_span: its length in frames. The paper's 10 frames are 0.2 s, which is 5 frames at 25
        frames a second.
      unmasked_weight: weight of the loss on unmasked frames.
      noise: probability that another recording or coloured noise is mixed into a row, whose labels
        do not change (as in WavLM, arXiv 2110.13900).
      noise_db: lowest and highest signal-to-noise ratio, in dB.
      segment_seconds: length of a row.
      layer: last layer of the exported network, from 1; 0 for the last.
      clusters: number of units of the exported quantizer.
    """

    recipe: str = "hubert"
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
            raise InputError(f"noise_db is {self.noise_db}, expected the lowest and the highest.")
