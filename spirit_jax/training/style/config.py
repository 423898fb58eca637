"""The run config of the style encoder's training. Importing this does not import JAX."""

import dataclasses

from spirit_jax.data.configs import F0Config
from spirit_jax.errors import InputError
from spirit_jax.models.speech_configs import StyleConfig
from spirit_jax.training.configs import OptimizerConfig, RecipeConfig

LABELS = ("features", "manifest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleRunConfig(RecipeConfig):
    """The run config of the style encoder; see `RecipeConfig` for its other fields.

    Attributes:
      network: sizes and number of styles; with `start`, the config of that network is used.
      f0: how F0 is estimated, for features.
      labels: "features", clusters of each second's features, or "manifest", one label for every
        (speaker, style) in the manifests.
      segment_units: length of a row, in seconds (style units).
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
