"""The language model of a model folder: it continues prompt strings, and scores them."""

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax import bucketing
from spirit_jax.errors import InputError
from spirit_jax.generation.base_engine import BaseEngine
from spirit_jax.generation.bench import make_runner
from spirit_jax.generation.config import GenerationConfig
from spirit_jax.generation.engine import ROWS, Engine, slots_of
from spirit_jax.generation.likelihood import compute_logits, sum_log_probs
from spirit_jax.generation.masks import make_masks, steering_mask
from spirit_jax.generation.remote import RemoteEngine
from spirit_jax.generation.request import Generation, Request
from spirit_jax.generation.runner import Runner
from spirit_jax.generation.stopping import Stop, cut_at_stop
from spirit_jax.model_folder import SPEECH_TOKENIZER
from spirit_jax.prompts import PromptEncoder
from spirit_jax.speech_tokenizer import SpeechTokenizer
from spirit_jax.vocab import Modality

DEFAULT_SLOTS = 2048  # of an engine whose requests do not need more
# If a cache with `ROWS` rows would be larger, the engine has only as many rows as it needs.
MAX_CACHE_BYTES = 512 << 20


class LanguageModel:
    """The part of `SpiritLM` whose inputs are prompt strings and whose outputs are token ids.

    The parameters are None if vLLM runs the language model.

    Attributes:
      folder: the model folder.
      vocab: the layout of the token ids.
      text_tokenizer: converts prompt strings to token ids and back.
    """

    def __init__(self, folder, vocab, text_tokenizer, speech_tokenizer, model, params, mesh):
        kind = "expressive" if vocab.pitch_units else "base"
        if model.config.vocab_size != vocab.padded_size:
            raise InputError(
                f"{folder}: the embedding of the language model has {model.config.vocab_size} "
                f"rows, but vocab.json has {vocab.padded_size}."
            )
        if speech_tokenizer is not None and speech_tokenizer.config.kind != kind:
            raise InputError(
                f"{folder}: the vocabulary is of kind {kind}, but the speech tokenizer of kind "
                f"{speech_tokenizer.config.kind}."
            )
        self.vocab, self.text_tokenizer = vocab, text_tokenizer
        self.folder, self._speech_tokenizer = folder, speech_tokenizer
        self._model, self._params, self._mesh = model, params, mesh
        self._prompts = PromptEncoder(
            folder, model.config, vocab, text_tokenizer, lambda: self.speech_tokenizer
        )
        self._engine: BaseEngine | None = None
        self._engine_lock = threading.Lock()

    @property
    def speech_tokenizer(self) -> SpeechTokenizer:
        """The speech tokenizer; raises `InputError` if the model folder has none."""
        if self._speech_tokenizer is None:
            raise InputError(
                f"{self.folder}: has no speech tokenizer; copy the folder '{SPEECH_TOKENIZER}' of "
                "a converted release into it."
            )
        return self._speech_tokenizer

    @property
    def max_tokens(self) -> int:
        """The largest number of tokens of a prompt and its continuation together."""
        return self._model.config.max_positions

    @property
    def bench_runner(self) -> Runner:
        """A runner of this model for `generation.bench`."""
        self._require_weights("Measuring the speed")
        return make_runner(self._model, self._params, self._mesh)

    def generate_ids(
        self,
        prompts: Sequence[str],
        output_modality: Modality | str = Modality.ARBITRARY,
        generation_config: GenerationConfig | None = None,
        **options: Any,
    ) -> list[list[int]]:
        """The generated token ids of each prompt string, including EOS.

        Args:
          prompts: prompt strings.
          output_modality: see `SpiritLM.generate_batch`.
          generation_config: see `SpiritLM.generate_batch`.
          options: see `SpiritLM.generate_batch`.

        Raises:
          InputError: a prompt or option cannot be used.
        """
        continuations = self.continue_prompts(
            prompts, output_modality, generation_config, **options
        )
        return [continuation.ids for continuation in continuations]

    def continue_prompts(
        self,
        prompts: Sequence[str],
        output_modality: Modality | str = Modality.ARBITRARY,
        generation_config: GenerationConfig | None = None,
        **options: Any,
    ) -> list[Generation]:
        """The generated token ids of each prompt string, with their log probabilities.

        Args:
          prompts: prompt strings.
          output_modality: see `SpiritLM.generate_batch`.
          generation_config: see `SpiritLM.generate_batch`.
          options: see `SpiritLM.generate_batch`.

        Returns:
          The result for each prompt, in order.

        Raises:
          InputError: a prompt or option cannot be used.
        """
        settings = merge_options(generation_config, options)
        requests = [
            self.make_request(prompt, output_modality, settings, number)
            for number, prompt in enumerate(bucketing.as_list(prompts, "prompts"))
        ]
        rows, slots = self._engine_size(requests)
        return self.engine(rows, slots).generate(requests)

    def submit(
        self,
        engine: Engine,
        prompt: str,
        output_modality: Modality | str = Modality.ARBITRARY,
        generation_config: GenerationConfig | None = None,
        sample: int = 0,
        **options: Any,
    ) -> Generation:
        """Queues a prompt string in an engine of this model.

        Args:
          engine: from `engine`.
          prompt: a prompt string.
          output_modality: see `SpiritLM.generate_batch`.
          generation_config: see `SpiritLM.generate_batch`.
          sample: number of this sample; samples of one prompt and seed differ by it.
          options: see `SpiritLM.generate_batch`.

        Returns:
          The request in the engine, which runs when `Engine.run`, `stream` or `step` is called.

        Raises:
          InputError: the prompt or an option cannot be used.
        """
        settings = merge_options(generation_config, options)
        return engine.submit(self.make_request(prompt, output_modality, settings, sample))

    def make_request(
        self,
        prompt: str | list[int],
        modality: Modality | str,
        settings: GenerationConfig,
        sample: int = 0,
    ) -> Request:
        """A request for an engine of this model.

        Args:
          prompt: a prompt string, or token ids, which begin with BOS.
          modality: see `SpiritLM.generate_batch`.
          settings: the settings of generation.
          sample: see `submit`.

        Raises:
          InputError: the prompt cannot be used.
        """
        modality = Modality.of(modality)
        is_ids = isinstance(prompt, list) and all(type(token) is int for token in prompt)
        tokens = prompt if is_ids and prompt else self._prompts.encode(prompt)
        if not tokens:
            raise InputError("The prompt has no tokens, and this model has no BOS; give an input.")
        mask = list(Modality).index(modality)
        if settings.follow_markers:
            if modality is not Modality.ARBITRARY:
                raise InputError(
                    "follow_markers is for arbitrary output: the model generates no markers if the "
                    f"output is {modality}."
                )
            mask = steering_mask(self.vocab, tokens)
        stop = None
        if settings.stop or settings.max_speech_seconds is not None:
            tokenizer = self._speech_tokenizer
            has_vocoder = tokenizer is not None and tokenizer.has_vocoder
            vocoder = tokenizer.vocoder_stream if has_vocoder else None
            stop = Stop(self.text_tokenizer, self.vocab, settings, vocoder)
        return Request(tokens, mask, settings, sample, stop)

    def generated_string(self, generation: Generation) -> str:
        """The prompt string that a request generated, up to a stop string."""
        string = self.text_tokenizer.decode_prompt(generation.ids)
        return cut_at_stop(string, generation.request.config.stop, self.vocab.markup)

    def engine(self, rows: int = ROWS, slots: int | None = None) -> BaseEngine:
        """The engine with which all methods of this model generate.

        In requests that are not from `make_request`, `Request.mask` is an index in
        `masks.make_masks`: that of a modality in `Modality`, or `masks.steering_mask`.

        Args:
          rows: number of requests that decode together. The engine may have more rows.
          slots: largest number of tokens of a prompt and its continuation; by default all
            positions of the model. The engine may have more slots.

        Returns:
          The engine of earlier calls, if it has enough rows and slots or is vLLM's; otherwise a new
          engine that replaces it.
        """
        slots = self.max_tokens if slots is None else slots
        with self._engine_lock:
            if isinstance(self._engine, RemoteEngine):
                return self._engine
            if self._engine is None or self._engine.rows < rows or self._engine.slots < slots:
                if self._engine is not None:
                    rows = max(rows, self._engine.rows)
                    slots = max(slots, self._engine.slots)
                masks = jax.tree.map(jnp.asarray, make_masks(self.vocab))
                eos_e = np.array(self.vocab.eos, np.int32)
                runner = Runner(self._model, self._params, masks, eos_e, self._mesh)
                self._engine = Engine(runner, rows, slots)
            return self._engine

    def _engine_size(self, requests: Sequence[Request]) -> tuple[int, int]:
        """Rows and slots of an engine for requests; mostly equal, so that little is compiled."""
        cfg = self._model.config
        slots = max(slots_of(requests, self.max_tokens), min(DEFAULT_SLOTS, self.max_tokens))
        token_bytes = 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim
        row_bytes = slots * token_bytes * jnp.dtype(self._model.dtype).itemsize
        if row_bytes * ROWS <= MAX_CACHE_BYTES:
            return ROWS, slots
        return min(len(requests), ROWS), slots

    def logits(self, prompt: str) -> np.ndarray:
        """The next-token logits after each token of a prompt: float32 (tokens, padded vocabulary).

        Raises:
          InputError: the prompt has a unit that the model does not have, or more tokens than the
            model has positions.
        """
        self._require_weights("Logits")
        tokens = self._prompts.encode(prompt)
        self._prompts.check_length(tokens)
        return compute_logits(self._model, self._params, self._mesh, tokens)

    def score(
        self,
        pairs: Sequence[tuple[str, str]],
        counted: Modality | str = Modality.ARBITRARY,
    ) -> list[tuple[float, int]]:
        """The log probabilities of continuations, each given its context.

        Args:
          pairs: (context, continuation) prompt strings. A context may be "".
          counted: text or speech counts only the tokens of this modality (see `Vocab.counted`);
            arbitrary counts all.

        Returns:
          For each pair the sum of the natural log probabilities of the continuation's tokens, over
          the whole vocabulary, and the number of these tokens. EOS is not counted, and neither is
          the first token of a pair for a model without BOS.

        Raises:
          InputError: a continuation has no tokens that count, a string has a unit that the model
            does not have, or a pair has more tokens than the model has positions.
        """
        pairs = bucketing.as_list(pairs, "pairs")
        is_counted_v = self.vocab.counted(counted)
        encoded = [self._prompts.encode_pair(pair) for pair in pairs]
        # For each pair, which tokens of the continuation count.
        masks = [is_counted_v[tokens[start:]] for tokens, start in encoded]
        for (_, continuation), mask_t in zip(pairs, masks, strict=True):
            if not mask_t.any():
                which = "" if counted == Modality.ARBITRARY else f"{counted} "
                raise InputError(f"The continuation {continuation[:40]!r} has no {which}tokens.")
        sequences = [tokens for tokens, _ in encoded]
        if isinstance(self._engine, RemoteEngine):
            log_probs = self._engine.score(sequences)
            sums = [
                float(np.dot(log_probs_t[-len(mask_t) :], mask_t))
                for log_probs_t, mask_t in zip(log_probs, masks, strict=True)
            ]
        else:
            sums = sum_log_probs(
                self._model, self._params, self._mesh, sequences, masks, self.vocab.size
            )
        return [(total, int(mask_t.sum())) for total, mask_t in zip(sums, masks, strict=True)]

    def _require_weights(self, what: str) -> None:
        if self._params is None:
            raise InputError(f"{what} needs the weights, not vLLM; load the model without lm.")


def merge_options(base: GenerationConfig | None, options: dict[str, Any]) -> GenerationConfig:
    """Settings of generation with some fields replaced.

    Args:
      base: the settings; the default ones if None.
      options: values by the name of the field.

    Raises:
      InputError: `base` is not a `GenerationConfig`, a field does not exist, or a value is invalid.
    """
    if not isinstance(base, GenerationConfig | None):
        raise InputError(f"Expected a GenerationConfig, not {type(base).__name__}.")
    known = {field.name for field in dataclasses.fields(GenerationConfig)}
    for name in options:
        if name not in known:
            raise InputError(f"'{name}' is not an option; known are {', '.join(sorted(known))}.")
    return dataclasses.replace(base or GenerationConfig(), **options)
