"""The run config of the quantizer's training. Importing this is cheap: no JAX."""

import dataclasses

from spirit_jax.data.configs import AugmentConfig
from spirit_jax.errors import InputError
from spirit_jax.training.configs import OptimizerConfig, RecipeConfig


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
