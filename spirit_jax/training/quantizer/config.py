"""The run config of the quantizer's training. Importing this does not import JAX."""

import dataclasses

from spirit_jax.data.configs import AugmentConfig
from spirit_jax.errors import InputError
from spirit_jax.training.configs import OptimizerConfig, RecipeConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizerRunConfig(RecipeConfig):
    """The run config of the quantizer; see `RecipeConfig` for its other fields.

    Attributes:
      start: a folder or model with `hubert` and `quantizer`.
      augment: data augmentation.
      hidden_sizes: widths of the classifier's hidden layers. If the quantizer of `start` is a
        classifier, it is trained further and these are not used.
      train_encoder_layers: number of the encoder's last layers that are trained too.
      segment_seconds: length of a row before augmentation.
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
            raise InputError("start is empty; set it to a folder that has hubert and quantizer.")
        if self.segment_seconds <= 0 or self.train_encoder_layers < 0:
            raise InputError("segment_seconds must be above 0, train_encoder_layers 0 or more.")
