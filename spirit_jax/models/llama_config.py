"""Config of the language model. Importing this does not import JAX."""

import dataclasses

from spirit_jax import limits
from spirit_jax.errors import InputError

ROPE_SCALINGS = ("llama3", "linear", "yarn")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")  # of networks in the form of a Llama


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary frequencies for contexts longer than in pretraining.

    Attributes:
      kind: "llama3" (Llama 3.1: low frequencies are divided by `factor`, high ones are unchanged,
        with a smooth ramp between), "linear" (all are divided by `factor`), or "yarn" (arXiv
        2309.00071: as llama3, with a ramp over the index of a frequency).
      factor: see `kind`.
      low_freq_factor, high_freq_factor: of llama3: the ramp is between the wavelengths
        original_max_positions / high_freq_factor and original_max_positions / low_freq_factor.
      original_max_positions: context length of pretraining.
      beta_fast, beta_slow: of yarn: the ramp is between the frequencies that turn so many times in
        original_max_positions.
      truncate: of yarn: the ramp begins and ends at whole indices.
      attention_factor: of yarn: rotated queries and keys are multiplied by it.
    """

    kind: str = "llama3"
    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    def __post_init__(self):
        if self.kind not in ROPE_SCALINGS:
            raise InputError(
                f"RoPE scaling of kind '{self.kind}' is not supported; known are "
                f"{', '.join(ROPE_SCALINGS)}."
            )
        limits.check_numbers(
            self,
            factor=(1e-3, 1e6),
            low_freq_factor=(1e-6, 1e6),
            high_freq_factor=(1e-6, 1e6),
            original_max_positions=(1, 1 << 30),
            beta_fast=(1e-6, 1e6),
            beta_slow=(1e-6, 1e6),
            attention_factor=(1e-3, 1e3),
        )
        if self.kind == "llama3" and self.low_freq_factor == self.high_freq_factor:
            raise InputError(
                f"low_freq_factor and high_freq_factor of the RoPE scaling are both "
                f"{self.low_freq_factor}; they must differ."
            )


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama, or of another network of its form.

    Attributes:
      family: one of `FAMILIES`. Three differ from a Llama: "qwen2" has a bias in q, k and v,
        "qwen3" a norm of each query and key head, and "smollm3" can have `unrotated_layers`.
      vocab_size: rows of the embedding, including padding rows.
      hidden_size, intermediate_size: widths of the model and of the MLP.
      num_heads, num_kv_heads, head_dim: of grouped-query attention.
      unrotated_layers: indices of the layers without rotary positions (NoPE, arXiv 2305.19466), in
        ascending order.
      tie_embeddings: the output projection is the transposed embedding.
      attention_bias, mlp_bias: a bias in all linear layers of attention, and of the MLP.
      init_std: standard deviation of initial parameters.
      trained_positions: longest sequence in a training run of this package; 0 if unknown.
      int8_weights: the matrices of layers and the head are int8, with a scale for each output
        channel; for generation only.
    """

    vocab_size: int = 32512
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    rms_norm_eps: float = 1e-5
    rope_theta: float = 100_000.0
    rope_scaling: RopeScaling | None = None
    max_positions: int = 4096
    unrotated_layers: tuple[int, ...] = ()
    family: str = "llama"
    tie_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    init_std: float = 0.02
    trained_positions: int = 0
    int8_weights: bool = False

    def __post_init__(self):
        limits.check_numbers(
            self,
            vocab_size=limits.IDS,
            hidden_size=limits.WIDTH,
            intermediate_size=(1, 1 << 22),
            num_layers=limits.LAYERS,
            num_heads=limits.HEADS,
            num_kv_heads=limits.HEADS,
            head_dim=(2, 1 << 13),
            rms_norm_eps=limits.EPSILON,
            rope_theta=(1.0, 1e12),
            max_positions=(1, 1 << 30),
            trained_positions=(0, 1 << 30),
            init_std=(0.0, 100.0),
        )
        if self.family not in FAMILIES:
            raise InputError(
                f"family is '{self.family[:80]}'; expected one of {', '.join(FAMILIES)}."
            )
        if self.unrotated_layers and self.family != "smollm3":
            raise InputError(
                f"unrotated_layers is not empty, but only the family smollm3 has layers without "
                f"rotary positions, and this is {self.family}."
            )
        if list(self.unrotated_layers) != sorted(
            set(self.unrotated_layers) & set(range(self.num_layers))
        ):
            raise InputError(
                f"unrotated_layers is {str(self.unrotated_layers)[:80]}; expected ascending "
                f"indices of {self.num_layers} layers, from 0."
            )
        if self.rope_scaling and self.rope_scaling.kind == "yarn" and self.rope_theta == 1:
            raise InputError("rope_theta is 1; the RoPE scaling yarn needs more than 1.")
        if self.head_dim % 2:
            raise InputError(f"head_dim is {self.head_dim}; rotary positions need an even one.")
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key-value "
                "heads."
            )

    @property
    def qkv_bias(self) -> bool:
        """Whether q, k and v have a bias."""
        return self.attention_bias or self.family == "qwen2"

    @property
    def qk_norm(self) -> bool:
        """Whether each query and key head is normalised before its rotation."""
        return self.family == "qwen3"

    def check_float(self, folder: object) -> None:
        """Raises `InputError` if the model in this folder has int8 weights."""
        if self.int8_weights:
            raise InputError(
                f"{folder}: has int8 weights, which are for generation only; give the model "
                "folder that it was quantized from."
            )
