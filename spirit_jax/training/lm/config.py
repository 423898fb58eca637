"""The run config of the language model's training. Importing this does not import JAX."""

import dataclasses

from spirit_jax import limits
from spirit_jax.data.configs import DataConfig, SourceConfig
from spirit_jax.errors import InputError
from spirit_jax.generation.config import GenerationConfig
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.training.configs import LoopConfig, LoraConfig, OptimizerConfig, StepConfig
from spirit_jax.vocab import Modality


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """A prompt that the language model continues at each evaluation.

    Attributes:
      text: the prompt, or "" if it is speech.
      speech: path of a recording, or "" if the prompt is text.
      to: what is generated: text, speech or arbitrary.
      max_new_tokens: the most tokens that are generated.
      temperature: of sampling; 0 takes the likeliest tokens.
    """

    text: str = ""
    speech: str = ""
    to: str = "arbitrary"
    max_new_tokens: int = 100
    temperature: float = 0.0

    def __post_init__(self):
        if bool(self.text) == bool(self.speech):
            raise InputError("A sample needs either text or speech as its prompt.")
        Modality.of(self.to)
        self.settings(0)

    def settings(self, seed: int) -> GenerationConfig:
        """The settings of generation."""
        if not self.temperature:
            return GenerationConfig(self.max_new_tokens)
        return GenerationConfig(self.max_new_tokens, True, self.temperature, seed=seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LmRunConfig(LoopConfig):
    """The run config of the language model; see `LoopConfig` for its other fields.

    Attributes:
      model: the model folder to start from; its vocabulary and text tokenizer are used.
      random_init: starts from random parameters, with the vocabulary and tokenizer of `model`.
      sizes: config of the network with `random_init`; that of `model` by default.
      compute_dtype: "float32" or "bfloat16"; master weights are float32.
      scan_layers, remat, attention: see `Llama`.
      compiler_options: XLA options for the training step, by name.
      topology: the TPU slice, such as "v5e:16x16"; for `tpu/plan.py`.
      data: the corpora and how batches are built.
      seed: of random parameters.
      eval_sources: held-out corpora for evaluation (see `eval_every`).
      eval_batches: number of batches in an evaluation; the same batches every time.
      samples: prompts that are continued at each evaluation; the outputs are written to
        RUN_DIR/report.
      optimizer: optimizer and learning rate.
      step: gradient accumulation, and how the loss is computed.
      lora: LoRA adapters.
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
    samples: tuple[SampleConfig, ...] = ()
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
            raise InputError("sizes need random initialisation: set random_init too.")
        if self.random_init and self.lora.rank:
            raise InputError("lora adapts a trained model: it cannot be used with random_init.")
        if self.data.batch_rows % self.step.accumulate:
            raise InputError(
                f"batch_rows is {self.data.batch_rows}, which {self.step.accumulate} parts "
                "(step.accumulate) do not divide."
            )
        if self.eval_batches < 1:
            raise InputError("eval_batches must be at least 1.")
