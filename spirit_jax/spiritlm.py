"""What a user calls: prompts of text and speech in, text and speech out."""

import contextlib
import dataclasses
import functools
import math
import warnings
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax import bucketing, config, markup, model_folder, sharding, transcription, units
from spirit_jax.audio import Audio
from spirit_jax.errors import InputError, InputWarning
from spirit_jax.generation import decode
from spirit_jax.generation.sampling import GenerationConfig
from spirit_jax.model_folder import SPEECH_TOKENIZER
from spirit_jax.models import llama
from spirit_jax.speech_tokenizer import SpeechTokenizer
from spirit_jax.text import check_unicode, load_text_tokenizer
from spirit_jax.units import Spoken, Units
from spirit_jax.vocab import Modality, Vocab

SCORED_ROWS = 16  # of a batch of `score`, or a few more for a mesh

Input = tuple[Modality | str, str | Audio | Units]


@dataclasses.dataclass(frozen=True)
class Output:
    """A piece of what was generated.

    Attributes:
      content: the text, or float32 samples at 16 kHz.
      content_type: `Modality.TEXT` or `Modality.SPEECH`.
    """

    content: str | np.ndarray
    content_type: Modality


class SpiritLM:
    """A language model of text and speech; `from_pretrained` makes one.

    Attributes:
      folder: that it was loaded from.
      vocab: the id layout.
      text_tokenizer: prompt strings to ids and back.
    """

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        mesh: jax.sharding.Mesh | None = None,
        dtype: Any = None,
        scan_layers: bool | None = None,
    ) -> "SpiritLM":
        """Loads a model folder.

        Args:
          folder: what a conversion or a training wrote; or the name of a model that comes with the
            package.
          mesh: shards the parameters and the rows of a batch; see `sharding.make_mesh`.
          dtype: of the parameters; as they are stored by default. The computation is in float32
            on a CPU and in bfloat16 on accelerators, unless `dtype` is given.
          scan_layers: one compiled layer for all, quicker to compile. By default on accelerators.

        Raises:
          InputError: no whole model folder, or parts that do not belong together.
        """
        folder = model_folder.find_language_model(folder)
        dtype = _check_dtype(dtype)
        if not isinstance(scan_layers, bool | None):
            raise InputError(f"scan_layers is {scan_layers!r}; expected True, False or None.")
        on_cpu = jax.default_backend() == "cpu"
        mesh = None if mesh is None else sharding.as_auto(mesh)
        vocab = config.read(Vocab, folder / "vocab.json")
        model, params = llama.load(
            folder / "llama",
            mesh,
            dtype,
            compute_dtype=dtype or (jnp.float32 if on_cpu else jnp.bfloat16),
            scan_layers=not on_cpu if scan_layers is None else scan_layers,
        )
        speech_tokenizer = None
        if (folder / SPEECH_TOKENIZER).is_dir():
            speech_tokenizer = SpeechTokenizer.from_pretrained(folder)
        text_tokenizer = load_text_tokenizer(folder / "text_tokenizer", vocab)
        return cls(folder, vocab, text_tokenizer, speech_tokenizer, model, params, mesh)

    def __init__(self, folder, vocab, text_tokenizer, speech_tokenizer, model, params, mesh):
        kind = "expressive" if vocab.pitch_units else "base"
        if model.config.vocab_size != vocab.padded_size:
            raise InputError(
                f"{folder}: the language model has {model.config.vocab_size} rows, and vocab.json "
                f"{vocab.padded_size}."
            )
        if speech_tokenizer is not None and speech_tokenizer.config.kind != kind:
            raise InputError(
                f"{folder}: the vocabulary is of kind {kind}, and the speech tokenizer "
                f"{speech_tokenizer.config.kind}."
            )
        self.vocab, self.text_tokenizer = vocab, text_tokenizer
        self.folder, self._speech_tokenizer = folder, speech_tokenizer
        self._model, self._params, self._mesh = model, params, mesh
        self._tokens = set(vocab.token_strings())
        self._warned_of_length = False

    @property
    def speech_tokenizer(self) -> SpeechTokenizer:
        """Speech to units and back; raises `InputError` for a model folder without one."""
        if self._speech_tokenizer is None:
            raise InputError(
                f"{self.folder}: has no speech tokenizer; copy the folder '{SPEECH_TOKENIZER}' of "
                "a converted release into it."
            )
        return self._speech_tokenizer

    @property
    def max_tokens(self) -> int:
        """The most tokens of a prompt and its continuation together."""
        return self._model.config.max_positions

    def build_prompt(
        self, inputs: Sequence[Input], output_modality: Modality | str = Modality.ARBITRARY
    ) -> str:
        """The prompt string of inputs, with the marker of the wanted output.

        A text input is text, whatever it says: "[Hu5]" in it is five letters and not a unit. A
        prompt string has it as "[\\Hu5]"; see `markup`.

        Args:
          inputs: in order, each a modality and its content: text; or for speech audio in any form
            that `SpeechTokenizer.encode` takes, `Units`, or a unit string.
          output_modality: text, speech or arbitrary.

        Raises:
          InputError: an unknown modality, or content that cannot be used.
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
        return units.build_prompt(strings, Modality.of(output_modality))

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
        """Continues one prompt; see `generate_batch`.

        Args:
          inputs: what `build_prompt` takes.
          prompt: a ready prompt string in place of `inputs`.
        """
        prompts = [self._one_prompt(inputs, prompt, output_modality)]
        return self._generate(
            prompts, output_modality, generation_config, speaker_id, style_id, options
        )[0]

    def generate_batch(
        self,
        batch: Sequence[Sequence[Input] | str],
        output_modality: Modality | str = Modality.ARBITRARY,
        generation_config: GenerationConfig | None = None,
        speaker_id: int | str | None = None,
        style_id: int | str | None = None,
        **options: Any,
    ) -> list[list[Output]]:
        """Continues many prompts, of unequal length, in one call.

        Args:
          batch: each prompt's inputs, or a ready prompt string.
          output_modality: what may be generated: text, speech, or arbitrary for both.
          generation_config: how to generate.
          speaker_id, style_id: the voice and manner of speech, by number or name.
          options: fields of `GenerationConfig`, which replace those of `generation_config`.

        Returns:
          For every prompt what was generated, in order; see `decode_outputs`.

        Raises:
          InputError: an input or option that cannot be used, no such speaker or style.
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
        """The new token ids of each prompt string, the EOS included where it came."""
        found = self.continue_prompts(prompts, output_modality, generation_config, **options)
        return [continuation.ids for continuation in found]

    def continue_prompts(
        self,
        prompts: Sequence[str],
        output_modality: Modality | str = Modality.ARBITRARY,
        generation_config: GenerationConfig | None = None,
        **options: Any,
    ) -> list[decode.Continuation]:
        """The new token ids of each prompt string, with their log probabilities."""
        return decode.continue_prompts(
            self._model,
            self._params,
            [self._encode(prompt) for prompt in bucketing.as_list(prompts, "prompts")],
            self.vocab.allowed(output_modality),
            self.vocab.eos,
            _merge_options(generation_config, options),
            self._mesh,
        )

    def transcribe(self, recordings: Audio | Units | list[Audio | Units]) -> Any:
        """Writes down what is said in recordings, and says how sure the model is of it.

        How the model was taught to, and from which scores on it is trusted, is in
        `transcription.json` of its folder; see `transcription.TranscriptionConfig`.

        Args:
          recordings: a recording in any form that `SpeechTokenizer.encode` takes, or `Units`; or a
            list of them. A transcript does not depend on the others in the list.

        Returns:
          A `transcription.Transcript`, or a list of them.

        Raises:
          InputError: a recording that cannot be read, or a model folder without the file.
        """
        if isinstance(recordings, list):
            return transcription.transcribe(self, self.transcription_config, recordings)
        return transcription.transcribe(self, self.transcription_config, [recordings])[0]

    @functools.cached_property
    def transcription_config(self) -> transcription.TranscriptionConfig:
        """How it transcribes; raises `InputError` for a model folder that does not say."""
        return transcription.read_config(self.folder)

    def logits(self, prompt: str) -> np.ndarray:
        """What is expected after every token of a prompt: float32 (tokens, padded vocabulary).

        Raises:
          InputError: no prompt string of this model's, or more tokens than it has positions.
        """
        tokens = self._encode(prompt)
        self._check_room(tokens)
        rows = sharding.batch_multiple(self._mesh)
        tokens_bt = np.zeros((rows, bucketing.power_of_two(len(tokens), 16)), np.int32)
        tokens_bt[:, : len(tokens)] = tokens
        segments_bt = np.zeros_like(tokens_bt)
        segments_bt[:, : len(tokens)] = 1
        place = functools.partial(sharding.place_batch, mesh=self._mesh)
        with self._in_mesh():
            logits_btv = _forward(self._model, self._params, place(tokens_bt), place(segments_bt))
        return np.asarray(logits_btv[0, : len(tokens)])

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """How likely continuations are after their contexts.

        Args:
          pairs: each a context and its continuation, prompt strings. A context may be "".

        Returns:
          For each the sum of its tokens' natural log probabilities, of the whole vocabulary, and
          their number (no EOS among them).

        Raises:
          InputError: a continuation without a token, no prompt strings of this model's, or more
            tokens than it has positions.
        """
        places = []  # tokens, and where the continuation begins
        for pair in bucketing.as_list(pairs, "pairs"):
            if not isinstance(pair, tuple | list) or [type(part) for part in pair] != [str, str]:
                raise InputError(f"A pair is a context and a continuation, not {str(pair)[:40]!r}.")
            context, continuation = pair
            before = self.text_tokenizer.encode(context)
            tokens = self._encode(context + continuation)
            self._check_room(tokens)
            same = [a == b for a, b in zip(before, tokens, strict=False)]
            start = same.index(False) if False in same else len(same)
            if start == len(tokens):
                raise InputError(f"The continuation {continuation[:40]!r} has no tokens.")
            places.append((tokens, start))
        multiple = sharding.batch_multiple(self._mesh)
        rows = -(-SCORED_ROWS // multiple) * multiple
        order = sorted(range(len(places)), key=lambda i: len(places[i][0]))
        scores: dict[int, tuple[float, int]] = {}
        for first in range(0, len(order), rows):
            chosen = order[first : first + rows]
            slots = bucketing.power_of_two(max(len(places[i][0]) for i in chosen), 32)
            tokens_bt, segments_bt = np.zeros((2, rows, slots), np.int32)
            counted_bt = np.zeros((rows, slots), np.float32)
            for row, i in enumerate(chosen):
                tokens, start = places[i]
                tokens_bt[row, : len(tokens)] = tokens
                segments_bt[row, : len(tokens)] = 1
                counted_bt[row, start : len(tokens)] = 1
            place = functools.partial(sharding.place_batch, mesh=self._mesh)
            with self._in_mesh():
                batch = map(place, (tokens_bt, segments_bt, counted_bt))
                sums_b = np.asarray(_score(self._model, self._params, *batch, self.vocab.size))
            for row, i in enumerate(chosen):
                scores[i] = float(sums_b[row]), len(places[i][0]) - places[i][1]
        return [scores[i] for i in range(len(places))]

    def _encode(self, prompt: str) -> list[int]:
        """Ids of a prompt string, of which every token is one of this model's."""
        tokens = self.text_tokenizer.encode(prompt)
        for part in markup.parse(prompt):
            if part.is_token and part.string not in self._tokens:
                raise InputError(
                    f"{part.string} is no unit of this model ({self.folder}). If it is text, give "
                    "it as a text input."
                )
        trained = self._model.config.trained_positions
        if 0 < trained < len(tokens) and not self._warned_of_length:
            self._warned_of_length = True
            warnings.warn(
                f"A prompt has {len(tokens)} tokens, and the model was trained on {trained} at "
                "most: what it says after so many may be nonsense.",
                InputWarning,
                stacklevel=2,
            )
        return tokens

    def _check_room(self, tokens: Sequence[int]) -> None:
        positions = self._model.config.max_positions
        if len(tokens) > positions:
            raise InputError(
                f"A prompt has {len(tokens)} tokens, and the model has {positions} positions."
            )

    def _in_mesh(self):
        return jax.set_mesh(self._mesh) if self._mesh is not None else contextlib.nullcontext()

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
            self.speech_tokenizer.find_voice(speaker_id, style_id)  # complain before the work
        new_ids = self.generate_ids(prompts, output_modality, generation_config, **options)
        generated = [self.text_tokenizer.decode_prompt(ids) for ids in new_ids]
        return self.decode_outputs(prompts, generated, speaker_id, style_id)

    def decode_outputs(
        self,
        prompts: Sequence[str],
        generated: Sequence[str],
        speaker_id: int | str | None = None,
        style_id: int | str | None = None,
        least: int = units.MIN_SPEECH_UNITS,
    ) -> list[list[Output]]:
        """Text and speech of generated strings, one for each prompt string.

        Both are prompt strings; `text_tokenizer.decode_prompt` gives those of generated ids, in
        which text that only spells a marker or unit is escaped.

        Speech that follows other content and has fewer than `least` Hu is dropped; speech that goes
        on from the prompt's is spoken together with it, and the prompt's share is cut off.
        """
        prompts = bucketing.as_list(prompts, "prompts")
        generated = bucketing.as_list(generated, "generated strings")
        if len(prompts) != len(generated):
            raise InputError(
                f"There are {len(prompts)} prompts and {len(generated)} generated strings."
            )
        if type(least) is not int or least < 0:
            raise InputError(f"least is {least!r}; expected a whole number from 0 on.")
        for string in (*prompts, *generated):
            check_unicode(string)
        plans = [units.plan_outputs(*pair, least) for pair in zip(prompts, generated, strict=True)]
        spoken = [piece for plan in plans for piece in plan if self._can_speak(piece)]
        if spoken:
            waves = iter(
                self.speech_tokenizer.decode_batch(
                    [piece.content for piece in spoken], speaker_id, style_id
                )
            )
        outputs = []
        for plan in plans:
            outputs.append([])
            for piece in plan:
                if isinstance(piece, str):
                    outputs[-1].append(Output(piece, Modality.TEXT))
                elif self._can_speak(piece):
                    wave = next(waves)
                    wave = wave[math.ceil(len(wave) * piece.skip) :]
                    outputs[-1].append(Output(wave, Modality.SPEECH))
                else:
                    message = "Speech without any pitch unit was left out."
                    warnings.warn(message, InputWarning, stacklevel=2)
        return outputs

    def _can_speak(self, piece: str | Spoken) -> bool:
        """Whether it is speech, with what the vocoder needs."""
        return isinstance(piece, Spoken) and (not self.vocab.pitch_units or "[Pi" in piece.content)

    def _speech_string(self, content: str | Audio | Units) -> str:
        if isinstance(content, str) and content.lstrip().startswith(("[Hu", "[Pi", "[St")):
            units.from_string(content)  # complains about junk
            # White space and markers are passed over there, and must not become text here.
            return "".join(p.string for p in markup.parse(content) if markup.UNIT.match(p.string))
        if isinstance(content, Units):
            recorded = content
        else:
            recorded = self.speech_tokenizer.encode(content)
        if not len(recorded):
            raise InputError("A speech input has no units: it is shorter than 80 ms.")
        return self.speech_tokenizer.to_string(recorded)


def _check_dtype(dtype: Any) -> Any:
    """A dtype of parameters, by name too; raises `InputError` for what is none of real numbers."""
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
        raise InputError(f"A GenerationConfig was expected, not {type(base).__name__}.")
    known = {field.name for field in dataclasses.fields(GenerationConfig)}
    for name in options:
        if name not in known:
            raise InputError(f"'{name}' is no option; known are {', '.join(sorted(known))}.")
    return dataclasses.replace(base or GenerationConfig(), **options)


@functools.partial(jax.jit, static_argnums=0)
def _forward(model: llama.Llama, params: Any, tokens_bt: jax.Array, segments_bt: jax.Array):
    positions_bt = jnp.maximum(jnp.cumsum(segments_bt, axis=1) - 1, 0)
    return model.apply({"params": params}, tokens_bt, segments_bt, positions_bt)[0]


@functools.partial(jax.jit, static_argnums=(0, 5))
def _score(
    model: llama.Llama,
    params: Any,
    tokens_bt: jax.Array,
    segments_bt: jax.Array,
    counted_bt: jax.Array,
    tokens: int,
) -> jax.Array:
    """Sums of the log probabilities of the tokens that count; padding rows have none."""
    logits_btv = _forward(model, params, tokens_bt, segments_bt)[..., :tokens]
    logs_btv = jax.nn.log_softmax(logits_btv.astype(jnp.float32))
    told_bt = jnp.take_along_axis(logs_btv[:, :-1], tokens_bt[:, 1:, None], axis=-1)[..., 0]
    return (told_bt * counted_bt[:, 1:]).sum(axis=1)
