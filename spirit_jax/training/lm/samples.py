"""Text and speech that the language model generates at each evaluation of a training."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from spirit_jax import files, sharding
from spirit_jax.audio import SAMPLE_RATE, write_wav
from spirit_jax.errors import InputError
from spirit_jax.generation.engine import slots_of
from spirit_jax.generation.request import Generation
from spirit_jax.models import llama, llama_weights
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.spiritlm import SpiritLM, load_tokenizers
from spirit_jax.training import distributed
from spirit_jax.training.lm.config import SampleConfig
from spirit_jax.vocab import Modality, Vocab


class Sampler:
    """Continues the prompts of a run. The model for generation is in memory only meanwhile."""

    def __init__(
        self,
        folder: Path,
        vocab: Vocab,
        cfg: LlamaConfig,
        configs: tuple[SampleConfig, ...],
        seed: int,
    ):
        """Encodes the prompts.

        Args:
          folder: the model folder of the run.
          vocab: its vocabulary.
          cfg: of the network; with random initialisation the folder need not have it.
          configs: the prompts.
          seed: random seed of sampling.

        Raises:
          InputError: a recording cannot be read, the folder has no speech tokenizer, or a prompt is
            too long; the message names the sample.
        """
        self._folder, self._vocab, self._seed, self._configs = folder, vocab, seed, configs
        self._tokenizers = load_tokenizers(folder, vocab)
        self._prompts: list[str] = []
        lm = self._language_model(llama.Llama(cfg), None, None)
        for number, config in enumerate(configs):
            try:
                self._prompts.append(self._encode(lm, config))
            except InputError as error:
                raise InputError(f"samples[{number}]: {error}") from error

    def _language_model(self, model: llama.Llama, params: Any, mesh: Any) -> SpiritLM:
        return SpiritLM(self._folder, self._vocab, *self._tokenizers, model, params, mesh)

    def _encode(self, lm: SpiritLM, config: SampleConfig) -> str:
        """The prompt of a sample."""
        if config.to == Modality.SPEECH:
            _ = lm.speech_tokenizer  # raises an error if there is none
        given = ("speech", config.speech) if config.speech else ("text", config.text)
        prompt = lm.build_prompt([given], config.to)
        request = lm.make_request(prompt, config.to, config.settings(self._seed))
        if len(request.prompt) >= lm.max_tokens:
            raise InputError(
                f"the prompt has {len(request.prompt)} tokens, but the model has {lm.max_tokens} "
                "positions."
            )
        return prompt

    def write(self, model: llama.Llama, params: Any, step: int, folder: Path) -> None:
        """Generates; writes step-STEP.md, and a WAV file beside it for each output of speech.

        All processes generate together, and the first one writes.

        Args:
          model, params: from `make_unroll`.
          step: number of the step.
          folder: is created if it does not exist.
        """
        mesh = jax.tree.leaves(params)[0].sharding.mesh
        model, params = llama_weights.lay_out_for_decoding(model, params)
        lm = self._language_model(model, params, mesh)
        requests = [
            lm.make_request(prompt, config.to, config.settings(self._seed))
            for prompt, config in zip(self._prompts, self._configs, strict=True)
        ]
        engine = lm.engine(len(requests), slots_of(requests, lm.max_tokens))
        generations = engine.generate(requests)
        if distributed.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            self._write(lm, generations, step, folder)

    def _write(self, lm: SpiritLM, generations: list[Generation], step: int, folder: Path) -> None:
        generated = [lm.generated_string(generation) for generation in generations]
        lines = [f"# Samples after step {step}"]
        for number, (config, outputs) in enumerate(
            zip(self._configs, lm.decode_outputs(self._prompts, generated), strict=True)
        ):
            lines += ["", f"## {number}: {config.speech or config.text}, to {config.to}"]
            lines += ["", "```", generated[number], "```"]
            for part, output in enumerate(outputs):
                if output.content_type is Modality.SPEECH:
                    name = f"step-{step}-{number}-{part}.wav"
                    write_wav(folder / name, output.content)
                    lines += ["", f"[{len(output.content) / SAMPLE_RATE:.1f} s of speech]({name})"]
        files.write_text(folder / f"step-{step}.md", "\n".join(lines) + "\n")


@functools.cache  # compiled once in a run
def make_unroll(
    cfg: LlamaConfig, dtype: Any, mesh: jax.sharding.Mesh, scan_layers: bool
) -> tuple[llama.Llama, Callable[[Any], Any]]:
    """The model for generation, and the function that converts parameters of training to its own.

    Args:
      cfg: of the network.
      dtype: of computation; the parameters get it too.
      mesh: of the parameters.
      scan_layers: whether the parameters of training are stacked.
    """
    model = llama.Llama(cfg, dtype)
    boxed = llama_weights.abstract_params(model, boxed=True)
    numbers = nn.unbox(boxed)["layers"].keys()

    def unroll(params: Any) -> Any:
        if scan_layers:
            stacked = params["layers"]
            layers = {n: jax.tree.map(lambda leaf: leaf[int(n)], stacked) for n in numbers}  # noqa: B023
            params = params | {"layers": layers}
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    return model, jax.jit(unroll, out_shardings=sharding.param_shardings(boxed, mesh))
