"""The run config of HuBERT's training. Importing this is cheap: no JAX."""

import dataclasses

from spirit_jax.errors import InputError
from spirit_jax.models.configs import TrunkConfig
from spirit_jax.training.configs import KMeansConfig, OptimizerConfig, RecipeConfig

MFCC = "mfcc"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubertRunConfig(RecipeConfig):
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
            raise InputError(f"noise_db is {self.noise_db}, expected the least and the most.")
