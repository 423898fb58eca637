"""The public interface: loading a model, generation, scoring and transcription."""

import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax import bucketing, config, devices, model_folder, sharding, transcription, units
from spirit_jax.audio import Audio
from spirit_jax.errors import InputError, InputWarning
from spirit_jax.generation.config import GenerationConfig, int8_parts
from spirit_jax.generation.masks import make_masks
from spirit_jax.generation.outputs import Output, limit_speech
from spirit_jax.generation.remote import RemoteEngine
from spirit_jax.generation.streaming import OutputReader, Stream
from spirit_jax.language_model import LanguageModel, merge_options
from spirit_jax.model_folder import SPEECH_TOKENIZER
from spirit_jax.models import llama, llama_weights
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.prompts import Input
from spirit_jax.speech_tokenizer import SpeechTokenizer
from spirit_jax.text import TextTokenizer, check_unicode, load_text_tokenizer
from spirit_jax.units import Spoken, Units
from spirit_jax.vocab import Modality, Vocab


class SpiritLM(LanguageModel):
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
        model, params = llama_weights.load(
            folder / "llama",
            mesh,
            dtype,
            compute_dtype=dtype or devices.default_dtype(),
        )
        if int8_weights and not model.config.int8_weights:
            rounded, params = llama_weights.quantize_weights(model.config, params)
            model = model.clone(config=rounded)
        model, params = llama_weights.lay_out_for_decoding(model, params)
        model = model.clone(int8_cache=int8_cache)
        return cls(folder, vocab, *load_tokenizers(folder, vocab), model, params, mesh)

    @classmethod
    def _with_remote(cls, folder: Path, url: str) -> "SpiritLM":
        """A model whose language model is served by vLLM."""
        vocab = config.read(Vocab, folder / "vocab.json")
        model = llama.Llama(config.read(LlamaConfig, folder / "llama" / "config.json"))
        loaded = cls(folder, vocab, *load_tokenizers(folder, vocab), model, None, None)
        loaded._engine = RemoteEngine(url, make_masks(vocab), vocab.eos, loaded.max_tokens)
        return loaded

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
        return self._prompts.build(inputs, output_modality)

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
        prompts = [self._prompts.choose(inputs, prompt, output_modality)]
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
        """Continues one prompt, and yields text and speech while they are generated.

        The arguments are those of `generate`. The parts of an output together are that output of
        `generate`, with one exception. If speech continues the speech of the prompt, `generate`
        estimates from the number of units where the prompt's samples end (the release's rule);
        `stream` begins exactly at the first new unit.

        Returns:
          An iterator over `OutputPart`; see `Stream`.

        Raises:
          InputError: see `generate_batch`; the iterator raises it for units that cannot be spoken.
        """
        prompt = self._prompts.choose(inputs, prompt, output_modality)
        if speaker_id is not None or style_id is not None:
            self.speech_tokenizer.find_voice(speaker_id, style_id)
        request = self.make_request(
            prompt, output_modality, merge_options(generation_config, options), 0
        )
        reader = OutputReader(
            prompt,
            self.text_tokenizer,
            self.vocab,
            request.config,
            lambda: self.speech_tokenizer,
            (speaker_id, style_id),
        )
        return Stream(self.engine(*self._engine_size([request])), request, reader)

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
            self._prompts.choose((), item, output_modality)
            if isinstance(item, str)
            else self._prompts.choose(item, None, output_modality)
            for item in bucketing.as_list(batch, "prompts")
        ]
        return self._generate(
            prompts, output_modality, generation_config, speaker_id, style_id, options
        )

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
        waves: Iterator[np.ndarray] = iter(())
        if speech:
            contents = [piece.content for piece in speech]
            waves = iter(self.speech_tokenizer.decode_batch(contents, speaker_id, style_id))
        return [self._to_outputs(plan, waves) for plan in plans]

    def _to_outputs(self, plan: list[str | Spoken], waves: Iterator[np.ndarray]) -> list[Output]:
        """The outputs of a plan (see `units.plan_outputs`); the next `waves` are of its speech."""
        outputs = []
        for piece in plan:
            if isinstance(piece, str):
                outputs.append(Output(piece, Modality.TEXT))
            elif self._can_synthesise(piece):
                wave = next(waves)
                outputs.append(Output(wave[math.ceil(len(wave) * piece.skip) :], Modality.SPEECH))
            else:
                message = "Speech without any pitch unit was left out."
                warnings.warn(message, InputWarning, stacklevel=2)
        return outputs

    def _can_synthesise(self, piece: str | Spoken) -> bool:
        """Whether a piece is speech, with a pitch unit if the model is Expressive."""
        return isinstance(piece, Spoken) and (not self.vocab.pitch_units or "[Pi" in piece.content)

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


def load_tokenizers(folder: Path, vocab: Vocab) -> tuple[TextTokenizer, SpeechTokenizer | None]:
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
