"""The public interface: loading a model, generation, scoring and transcription."""

import dataclasses
import functools
import math
import threading
import warnings
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax import (
    bucketing,
    config,
    devices,
    markup,
    model_folder,
    sharding,
    transcription,
    units,
)
from spirit_jax.audio import Audio
from spirit_jax.errors import InputError, InputWarning
from spirit_jax.generation.base_engine import BaseEngine
from spirit_jax.generation.bench import make_runner
from spirit_jax.generation.config import GenerationConfig, int8_parts
from spirit_jax.generation.engine import ROWS, Engine, slots_of
from spirit_jax.generation.likelihood import compute_logits, sum_log_probs
from spirit_jax.generation.masks import make_masks, steering_mask
from spirit_jax.generation.outputs import Output, limit_speech
from spirit_jax.generation.remote import RemoteEngine
from spirit_jax.generation.request import Generation, Request
from spirit_jax.generation.runner import Runner
from spirit_jax.generation.stopping import Stop, cut_at_stop
from spirit_jax.generation.streaming import OutputReader, Stream
from spirit_jax.model_folder import SPEECH_TOKENIZER
from spirit_jax.models import llama
from spirit_jax.models.configs import LlamaConfig
from spirit_jax.speech_tokenizer import SpeechTokenizer
from spirit_jax.text import TextTokenizer, check_unicode, load_text_tokenizer
from spirit_jax.units import Spoken, Units
from spirit_jax.vocab import Modality, Vocab

USUAL_SLOTS = 2048  # tokens of a prompt and its continuation
USUAL_CACHE_BYTES = 512 << 20  # of a cache that is allocated for any number of prompts


Input = tuple[Modality | str, str | Audio | Units]


class SpiritLM:
    """A language model of text and speech; create it with `from_pretrained`.

    Attributes:
      folder: the model folder.
      vocab: the layout of the token ids.
      text_tokenizer: converts prompt strings to token ids and back.
    """

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        mesh: jax.sharding.Mesh | None = None,
        dtype: Any = None,
        quantization: str | None = None,
        lm: str | None = None,
    ) -> "SpiritLM":
        """Loads a model folder.

        Args:
          folder: a model folder, or the name of a packaged model.
          mesh: the mesh over which the parameters and the rows of a batch are sharded; see
            `sharding.make_mesh`.
          dtype: float32, bfloat16 or float16, for the parameters and the computation. By default
            parameters keep their stored dtype, and the computation is in the dtype of
            `devices.default_dtype`: float32 on a CPU, bfloat16 on accelerators, float16 on a T4.
          quantization: "int8_weights" rounds the matrices of the language model to int8,
            "int8_cache" the keys and values of its cache, and "int8" both. A folder that
            `quantize.quantize_model` wrote has int8 weights already.
          lm: URL of vLLM with the exported language model of this folder, such as
            "http://127.0.0.1:8000/v1", which generates and scores instead of this process; see
            `remote.RemoteEngine`. The folder then needs no arrays in `llama/`.

        Returns:
          The loaded model.

        Raises:
          InputError: the model folder is incomplete or damaged, its parts do not match, the dtype
            or quantization is unknown, or there is no vLLM at `lm`.
        """
        folder = model_folder.find_language_model(folder)
        if lm is not None:
            if any(option is not None for option in (mesh, dtype, quantization)):
                raise InputError("With lm, vLLM decides on mesh, dtype and quantization.")
            return cls._with_remote(folder, lm)
        dtype = _check_dtype(dtype)
        int8_weights, int8_cache = int8_parts(quantization)
        devices.warn_of_idle()
        mesh = None if mesh is None else sharding.as_auto(mesh)
        vocab = config.read(Vocab, folder / "vocab.json")
        model, params = llama.load(
            folder / "llama",
            mesh,
            dtype,
            compute_dtype=dtype or devices.default_dtype(),
        )
        if int8_weights and not model.config.int8_weights:
            rounded, params = llama.quantize_weights(model.config, params)
            model = model.clone(config=rounded)
        model, params = llama.lay_out_for_decoding(model, params)
        model = model.clone(int8_cache=int8_cache)
        return cls(folder, vocab, *_load_tokenizers(folder, vocab), model, params, mesh)

    @classmethod
    def _with_remote(cls, folder: Path, url: str) -> "SpiritLM":
        """A model whose language model is served by vLLM."""
        vocab = config.read(Vocab, folder / "vocab.json")
        model = llama.Llama(config.read(LlamaConfig, folder / "llama" / "config.json"))
        loaded = cls(folder, vocab, *_load_tokenizers(folder, vocab), model, None, None)
        loaded._engine = RemoteEngine(url, make_masks(vocab), vocab.eos, loaded.max_tokens)
        return loaded

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
        self._tokens = set(vocab.prompt_tokens())
        self._warned_of_length = False
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
        self._require_weights("Measuring")
        return make_runner(self._model, self._params, self._mesh)

    def build_prompt(
        self, inputs: Sequence[Input], output_modality: Modality | str = Modality.ARBITRARY
    ) -> str:
        """The prompt string of inputs, followed by the marker of the output modality.

        Text inputs are escaped: "[Hu5]" in a text means these five characters and not a unit, and
        becomes "[\\Hu5]" in the prompt string; see `markup`.

        Args:
          inputs: (modality, content) pairs in order. The content is a text; or, for speech, audio
            in any form that `SpeechTokenizer.encode` accepts, `Units`, or a unit string.
          output_modality: text, speech or arbitrary.

        Returns:
          The prompt string.

        Raises:
          InputError: the modality is unknown, or the content cannot be used.
        """
        strings = []
        for item in bucketing.as_list(inputs, "inputs"):
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise InputError(
                    f"An input is a pair such as ('text', 'hello'), not {str(item)[:40]!r}."
                )
            modality, content = Modality.of(item[0]), item[1]
            if modality is Modality.ARBITRARY:
                raise InputError("An input is text or speech, not arbitrary.")
            if modality is Modality.SPEECH:
                content = self._speech_string(content)
            elif not isinstance(content, str):
                raise InputError(f"A text input must be a string, not {type(content).__name__}.")
            else:
                check_unicode(content)
            strings.append((modality, content))
        return units.build_prompt(
            strings,
            Modality.of(output_modality),
            self.vocab.markup,
            self.vocab.always_mark_output,
        )

    def generate(
        self,
        inputs: Sequence[Input] = (),
        output_modality: Modality | str = Modality.ARBITRARY,
        prompt: str | None = None,
        generation_config: GenerationConfig | None = None,
        speaker_id: int | str | None = None,
        style_id: int | str | None = None,
        **options: Any,
    ) -> list[Output]:
        """Continues one prompt.

        Args:
          inputs: see `build_prompt`.
          output_modality: see `generate_batch`.
          prompt: a prompt string, instead of `inputs`.
          generation_config: see `generate_batch`.
          speaker_id: see `generate_batch`.
          style_id: see `generate_batch`.
          options: see `generate_batch`.

        Returns:
          The generated text and speech, in order; see `decode_outputs`.

        Raises:
          InputError: see `generate_batch`.
        """
        prompts = [self._one_prompt(inputs, prompt, output_modality)]
        return self._generate(
            prompts, output_modality, generation_config, speaker_id, style_id, options
        )[0]

    def stream(
        self,
        inputs: Sequence[Input] = (),
        output_modality: Modality | str = Modality.ARBITRARY,
        prompt: str | None = None,
        generation_config: GenerationConfig | None = None,
        speaker_id: int | str | None = None,
        style_id: int | str | None = None,
        **options: Any,
    ) -> Stream:
        """Continues one prompt, and gives text and speech as they come.

        The arguments are those of `generate`. The parts of an output together are that output of
        `generate`, with one exception. If speech continues the speech of the prompt, `generate`
        estimates from the number of units where the prompt's samples end (the release's rule);
        `stream` begins exactly at the first new unit.

        Returns:
          An iterator over `OutputPart`; see `Stream`.

        Raises:
          InputError: see `generate_batch`; the iterator raises it for units that cannot be spoken.
        """
        prompt = self._one_prompt(inputs, prompt, output_modality)
        if speaker_id is not None or style_id is not None:
            self.speech_tokenizer.find_voice(speaker_id, style_id)
        request = self.make_request(
            prompt, output_modality, _merge_options(generation_config, options), 0
        )
        reader = OutputReader(
            prompt,
            self.text_tokenizer,
            self.vocab,
            request.config,
            lambda: self.speech_tokenizer,
            (speaker_id, style_id),
        )
        return Stream(self.engine(*self._usual_size([request])), request, reader)

    def generate_batch(
        self,
        batch: Sequence[Sequence[Input] | str],
        output_modality: Modality | str = Modality.ARBITRARY,
        generation_config: GenerationConfig | None = None,
        speaker_id: int | str | None = None,
        style_id: int | str | None = None,
        **options: Any,
    ) -> list[list[Output]]:
        """Continues a batch of prompts, which may differ in length.

        Args:
          batch: for each prompt its inputs (see `build_prompt`), or a prompt string.
          output_modality: what may be generated: text, speech, or arbitrary for both.
          generation_config: number of tokens and sampling settings.
          speaker_id: number or name of the vocoder's speaker.
          style_id: number or name of the vocoder's style.
          options: fields of `GenerationConfig`, which override those of `generation_config`.

        Returns:
          For each prompt the generated text and speech, in order; see `decode_outputs`.

        Raises:
          InputError: an input or option cannot be used, or the speaker or style does not exist.
        """
        prompts = [
            self._one_prompt((), item, output_modality)
            if isinstance(item, str)
            else self._one_prompt(item, None, output_modality)
            for item in bucketing.as_list(batch, "prompts")
        ]
        return self._generate(
            prompts, output_modality, generation_config, speaker_id, style_id, options
        )

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
          output_modality: see `generate_batch`.
          generation_config: see `generate_batch`.
          options: see `generate_batch`.

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
          output_modality: see `generate_batch`.
          generation_config: see `generate_batch`.
          options: see `generate_batch`.

        Returns:
          The result for each prompt, in order.

        Raises:
          InputError: a prompt or option cannot be used.
        """
        settings = _merge_options(generation_config, options)
        requests = [
            self.make_request(prompt, output_modality, settings, number)
            for number, prompt in enumerate(bucketing.as_list(prompts, "prompts"))
        ]
        rows, slots = self._usual_size(requests)
        return self.engine(rows, slots).generate(requests)

    def _usual_size(self, requests: Sequence[Request]) -> tuple[int, int]:
        """Rows and slots of an engine; mostly the same ones, so that little is compiled."""
        cfg = self._model.config
        slots = max(slots_of(requests, self.max_tokens), min(USUAL_SLOTS, self.max_tokens))
        token_bytes = 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim
        row_bytes = slots * token_bytes * jnp.dtype(self._model.dtype).itemsize
        if row_bytes * ROWS <= USUAL_CACHE_BYTES:
            return ROWS, slots
        return min(len(requests), ROWS), slots

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
          output_modality: see `generate_batch`.
          generation_config: see `generate_batch`.
          sample: number of this sample; samples of one prompt and seed differ by it.
          options: see `generate_batch`.

        Returns:
          The request in the engine, which runs when `Engine.run`, `stream` or `step` is called.

        Raises:
          InputError: the prompt or an option cannot be used.
        """
        settings = _merge_options(generation_config, options)
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
          modality: see `generate_batch`.
          settings: of generation.
          sample: see `submit`.

        Raises:
          InputError: the prompt cannot be used.
        """
        modality = Modality.of(modality)
        is_ids = isinstance(prompt, list) and all(type(token) is int for token in prompt)
        tokens = prompt if is_ids and prompt else self._encode(prompt)
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
        """The engine that generates; all methods that generate use it.

        `Request.mask` is an index in `masks.make_masks`: that of a modality in `Modality`, or
        `masks.steering_mask`.

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

    def transcribe(self, recordings: Audio | Units | list[Audio | Units]) -> Any:
        """Transcribes recordings, with confidence scores.

        The prompt and the score thresholds are in `transcription.json` of the model folder; see
        `transcription.TranscriptionConfig`.

        Args:
          recordings: a recording in any form that `SpeechTokenizer.encode` accepts, or `Units`; or
            a list of them. A transcript does not depend on the other recordings of the list.

        Returns:
          A `transcription.Transcript`, or a list of them.

        Raises:
          InputError: a recording cannot be read, or the model folder has no `transcription.json`.
        """
        if isinstance(recordings, list):
            return transcription.transcribe(self, self.transcription_config, recordings)
        return transcription.transcribe(self, self.transcription_config, [recordings])[0]

    @functools.cached_property
    def transcription_config(self) -> transcription.TranscriptionConfig:
        """The content of `transcription.json`; raises `InputError` if the model folder has none."""
        return transcription.read_config(self.folder)

    def logits(self, prompt: str) -> np.ndarray:
        """The next-token logits after each token of a prompt: float32 (tokens, padded vocabulary).

        Raises:
          InputError: the prompt has a unit that the model does not have, or more tokens than the
            model has positions.
        """
        self._require_weights("Logits")
        tokens = self._encode(prompt)
        self._check_length(tokens)
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
        counts_v = self.vocab.counted(counted)
        encoded = [self._encode_pair(pair) for pair in pairs]
        wanted = [counts_v[tokens[start:]] for tokens, start in encoded]
        for (_, continuation), wanted_t in zip(pairs, wanted, strict=True):
            if not wanted_t.any():
                raise InputError(f"The continuation {continuation[:40]!r} has no {counted}.")
        sequences = [tokens for tokens, _ in encoded]
        if isinstance(self._engine, RemoteEngine):
            logs = self._engine.score(sequences)
            sums = [float(np.dot(x[-len(w) :], w)) for x, w in zip(logs, wanted, strict=True)]
        else:
            sums = sum_log_probs(
                self._model, self._params, self._mesh, sequences, wanted, self.vocab.size
            )
        return [(total, int(w.sum())) for total, w in zip(sums, wanted, strict=True)]

    def _encode_pair(self, pair: tuple[str, str]) -> tuple[list[int], int]:
        """(ids of context and continuation, index of the continuation's first token)."""
        if not isinstance(pair, tuple | list) or [type(part) for part in pair] != [str, str]:
            raise InputError(f"A pair is a context and a continuation, not {str(pair)[:40]!r}.")
        context, continuation = pair
        context_tokens = self.text_tokenizer.encode(context)
        tokens = self._encode(self.vocab.markup.join(pair))
        self._check_length(tokens)
        # A token may have the last characters of the context and the first of the continuation.
        is_same = [a == b for a, b in zip(context_tokens, tokens, strict=False)]
        start = is_same.index(False) if False in is_same else len(is_same)
        start = max(start, 1)  # the first token, which is BOS in most models, has no probability
        if start >= len(tokens):
            raise InputError(f"The continuation {continuation[:40]!r} has no tokens.")
        return tokens, start

    def _encode(self, prompt: str) -> list[int]:
        """Ids of a prompt string; raises `InputError` for a unit that the model does not have."""
        tokens = self.text_tokenizer.encode(prompt)
        for part in self.vocab.markup.parse(prompt):
            if part.is_token and part.string not in self._tokens:
                raise InputError(
                    f"{part.string} is not a unit of this model ({self.folder}). If it is text, "
                    "give it as a text input."
                )
        trained = self._model.config.trained_positions
        if 0 < trained < len(tokens) and not self._warned_of_length:
            self._warned_of_length = True
            warnings.warn(
                f"A prompt has {len(tokens)} tokens, but the model was trained on sequences of at "
                f"most {trained}; the output may be poor.",
                InputWarning,
                stacklevel=2,
            )
        return tokens

    def _check_length(self, tokens: Sequence[int]) -> None:
        positions = self._model.config.max_positions
        if len(tokens) > positions:
            raise InputError(
                f"A prompt has {len(tokens)} tokens, but the model has {positions} positions."
            )

    def _require_weights(self, what: str) -> None:
        if self._params is None:
            raise InputError(f"{what} needs the weights here; load the model without lm.")

    def _one_prompt(self, inputs, prompt: str | None, output_modality) -> str:
        if prompt is None:
            return self.build_prompt(inputs, output_modality)
        if not isinstance(inputs, Sized) or len(inputs):
            raise InputError("Give either inputs or a prompt, not both.")
        return prompt

    def _generate(
        self, prompts, output_modality, generation_config, speaker_id, style_id, options
    ) -> list[list[Output]]:
        if speaker_id is not None or style_id is not None:
            # Raises an error before generation if there is no such speaker or style.
            self.speech_tokenizer.find_voice(speaker_id, style_id)
        generations = self.continue_prompts(prompts, output_modality, generation_config, **options)
        generated = [self.generated_string(generation) for generation in generations]
        outputs = self.decode_outputs(prompts, generated, speaker_id, style_id)
        return [
            limit_speech(pieces, generation.request.config.max_speech_seconds)
            for pieces, generation in zip(outputs, generations, strict=True)
        ]

    def decode_outputs(
        self,
        prompts: Sequence[str],
        generated: Sequence[str],
        speaker_id: int | str | None = None,
        style_id: int | str | None = None,
        least: int = units.MIN_SPEECH_UNITS,
    ) -> list[list[Output]]:
        """Decodes generated strings to text and speech.

        Speech that continues the speech at the end of the prompt is synthesised together with it.
        The samples that belong to the prompt are then removed.

        Args:
          prompts: prompt strings.
          generated: for each prompt the generated prompt string, as
            `text_tokenizer.decode_prompt` returns it.
          speaker_id: number or name of the vocoder's speaker.
          style_id: number or name of the vocoder's style.
          least: smallest number of Hu units of a piece of speech. Shorter speech is dropped, unless
            the output begins with it and the prompt ends in text.

        Returns:
          For each prompt the generated text and speech, in order.

        Raises:
          InputError: an argument cannot be used, or the speaker or style does not exist.
        """
        prompts = bucketing.as_list(prompts, "prompts")
        generated = bucketing.as_list(generated, "generated strings")
        if len(prompts) != len(generated):
            raise InputError(
                f"There are {len(prompts)} prompts and {len(generated)} generated strings."
            )
        if type(least) is not int or least < 0:
            raise InputError(f"least is {least!r}; expected a whole number from 0.")
        for string in (*prompts, *generated):
            check_unicode(string)
        plans = [
            units.plan_outputs(*pair, least, self.vocab.markup)
            for pair in zip(prompts, generated, strict=True)
        ]
        speech = [piece for plan in plans for piece in plan if self._can_synthesise(piece)]
        if speech:
            waves = iter(
                self.speech_tokenizer.decode_batch(
                    [piece.content for piece in speech], speaker_id, style_id
                )
            )
        outputs = []
        for plan in plans:
            outputs.append([])
            for piece in plan:
                if isinstance(piece, str):
                    outputs[-1].append(Output(piece, Modality.TEXT))
                elif self._can_synthesise(piece):
                    wave = next(waves)
                    wave = wave[math.ceil(len(wave) * piece.skip) :]
                    outputs[-1].append(Output(wave, Modality.SPEECH))
                else:
                    message = "Speech without any pitch unit was left out."
                    warnings.warn(message, InputWarning, stacklevel=2)
        return outputs

    def _can_synthesise(self, piece: str | Spoken) -> bool:
        """Whether a piece is speech, with a pitch unit if the model is Expressive."""
        return isinstance(piece, Spoken) and (not self.vocab.pitch_units or "[Pi" in piece.content)

    def _speech_string(self, content: str | Audio | Units) -> str:
        """The unit string of a speech input."""
        notation = self.vocab.markup
        if isinstance(content, str) and units.is_unit_string(content, notation):
            parts = notation.parse(content)
            # Raises for anything but units, markers and white space.
            units.from_string(markup.render(parts))
            # Only the units are kept: white space and markers would change the prompt.
            return "".join(part.string for part in parts if markup.UNIT.match(part.string))
        encoded = content if isinstance(content, Units) else self.speech_tokenizer.encode(content)
        if not len(encoded):
            raise InputError("A speech input has no units: it is shorter than 80 ms.")
        string = self.speech_tokenizer.to_string(encoded)
        if not isinstance(content, Units) and self.speech_tokenizer.is_blank(encoded):
            if any(part.string not in self._tokens for part in markup.parse(string)):
                raise InputError("A speech input has no units: no speech was noticed in it.")
        return string


def _load_tokenizers(folder: Path, vocab: Vocab) -> tuple[TextTokenizer, SpeechTokenizer | None]:
    """The text tokenizer of a model folder, and its speech tokenizer if it has one."""
    speech_tokenizer = None
    if (folder / SPEECH_TOKENIZER).is_dir():
        speech_tokenizer = SpeechTokenizer.from_pretrained(folder)
    return load_text_tokenizer(folder / "text_tokenizer", vocab), speech_tokenizer


def _check_dtype(dtype: Any) -> Any:
    """The scalar type for a dtype or its name; raises `InputError` for unsupported dtypes."""
    if dtype is None:
        return None
    try:
        dtype = jnp.dtype(dtype)
    except TypeError as error:
        raise InputError(f"dtype is {str(dtype)[:40]!r}; expected float32 or bfloat16.") from error
    if dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise InputError(f"dtype is {dtype}; expected float32, bfloat16 or float16.")
    return getattr(jnp, dtype.name)


def _merge_options(base: GenerationConfig | None, options: dict[str, Any]) -> GenerationConfig:
    if not isinstance(base, GenerationConfig | None):
        raise InputError(f"Expected a GenerationConfig, not {type(base).__name__}.")
    known = {field.name for field in dataclasses.fields(GenerationConfig)}
    for name in options:
        if name not in known:
            raise InputError(f"'{name}' is not an option; known are {', '.join(sorted(known))}.")
    return dataclasses.replace(base or GenerationConfig(), **options)
