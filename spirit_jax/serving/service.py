"""What all endpoints and the page use: the model, the engine's thread, threads, and counts."""

import asyncio
import dataclasses
import functools
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from spirit_jax import transcription
from spirit_jax.audio import SAMPLE_RATE, Audio, load_audio
from spirit_jax.errors import InputError
from spirit_jax.generation.base_engine import BaseEngine
from spirit_jax.generation.config import GenerationConfig
from spirit_jax.generation.outputs import OutputPart
from spirit_jax.generation.request import Request
from spirit_jax.generation.streaming import OutputReader, Voice
from spirit_jax.models.vocoder_configs import HifiGanConfig
from spirit_jax.serving.errors import ApiError
from spirit_jax.serving.metrics import Metrics
from spirit_jax.serving.worker import Ticket, Worker
from spirit_jax.spiritlm import SpiritLM
from spirit_jax.transcription import Transcript
from spirit_jax.vocab import Modality

MAX_SPEECH_TOKENS = 1500  # of a spoken text; a minute of phonetic units
THREADS = 8  # beside the engine's, for encoding and decoding audio; they never wait for each other


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a server.

    Attributes:
      name: of the model, as clients call it.
      api_key: that clients must give; None for no key.
      max_upload: bytes of the body of a request.
      timeout: seconds after which a request is ended.
      max_concurrent: generations that wait or run at once; more are refused.
      root_path: the path prefix under which a proxy publishes the server, such as "/spirit".
    """

    name: str
    api_key: str | None = None
    max_upload: int = 25 << 20
    timeout: float = 600.0
    max_concurrent: int = 256
    root_path: str = ""


class Service:
    """The model behind a server.

    Attributes:
      lm: the model.
      settings: of the server.
      worker: the engine's thread.
      metrics: counts for Prometheus.
    """

    def __init__(self, lm: SpiritLM, engine: BaseEngine, settings: Settings):
        self.lm, self.settings = lm, settings
        self._engine = engine
        self.worker = Worker(engine)
        self.metrics = Metrics(self.worker)
        self._pool = ThreadPoolExecutor(THREADS + (os.cpu_count() or 1), "serving")

    def start(self) -> None:
        """Starts the engine's thread."""
        self.worker.start()

    def warm_up(self) -> None:
        """Compiles what generation needs, before the first request."""
        # At the same time, since a compilation mostly uses one core.
        compiled = []
        if self.vocoder is not None:
            compiled.append(self._pool.submit(self.lm.speech_tokenizer.vocoder_stream.warm_up))
        self._engine.warm_up()
        for future in compiled:
            future.result()

    def stop(self) -> None:
        """Ends all threads; requests that run end with an error."""
        self.worker.stop()
        self._pool.shutdown(cancel_futures=True)

    @property
    def vocoder(self) -> HifiGanConfig | None:
        """The config of the vocoder, if the model has one."""
        try:
            return self.lm.speech_tokenizer.vocoder_config
        except InputError:
            return None

    @property
    def notice(self) -> str | None:
        """A sentence for users while vLLM is waited for, otherwise None."""
        return self._engine.notice

    def check_model(self, name: str | None) -> None:
        """Raises `ApiError` unless a client's name of a model is that of this one."""
        if not name:
            raise ApiError(400, "The field 'model' is missing.", None, "model")
        if name != self.settings.name:
            message = f"There is no model '{str(name)[:80]}' here, only '{self.settings.name}'."
            raise ApiError(404, message, "model_not_found", "model")

    async def in_thread(self, function: Callable, *args: Any) -> Any:
        """Calls a function in a thread, without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def submit(self, requests: Sequence[Request], is_streamed: bool) -> list[Ticket]:
        """Queues requests in the engine; raises `ApiError` if too many wait already."""
        most = self.settings.max_concurrent
        if self.worker.live + len(requests) > most:
            raise ApiError(429, f"The server is busy with {most} generations; try again.", "busy")
        return [self.worker.submit(request, is_streamed) for request in requests]

    def speech_prompt(self, text: str, style: str | None = None) -> str:
        """The prompt string after which a model reads a text aloud.

        Args:
          text: the words.
          style: a style token of an Expressive model, such as "[St3]"; None lets the model choose.
        """
        template = ""
        if (self.lm.folder / transcription.CONFIG_NAME).is_file():
            template = self.lm.transcription_config.read_aloud
        if template:
            fields = {"text": text}.__getitem__
            prompt = transcription.fill(template, fields, self.lm.text_tokenizer)
        else:
            prompt = self.lm.build_prompt([("text", text)], "speech")
        return prompt + (style or "")

    async def parts(
        self,
        prompt: str,
        modality: Modality | str,
        config: GenerationConfig,
        voice: Voice,
        on_ids: Callable[[list[int]], Any] = lambda ids: None,
    ) -> AsyncIterator[OutputPart]:
        """Text and speech while they are generated; see `SpiritLM.stream`.

        Args:
          prompt: a prompt string.
          modality: what may be generated.
          config: of generation.
          voice: speaker and style of the vocoder.
          on_ids: called with new ids.

        Raises:
          InputError: the prompt or the voice cannot be used.
          ApiError: the server is busy.
        """
        if any(part is not None for part in voice):
            self.lm.speech_tokenizer.find_voice(*voice)
        request = await self.in_thread(self.lm.make_request, prompt, modality, config)
        reader = OutputReader(
            prompt,
            self.lm.text_tokenizer,
            self.lm.vocab,
            config,
            lambda: self.lm.speech_tokenizer,
            voice,
        )
        (ticket,) = self.submit([request], is_streamed=True)
        try:
            async for ids, _ in ticket.chunks():
                on_ids(ids)
                for part in await self.in_thread(lambda ids=ids: list(reader.add(ids))):
                    yield part
                if reader.ended:
                    return
            for part in await self.in_thread(lambda: list(reader.finish())):
                yield part
        finally:
            ticket.is_cancelled = True

    async def transcribe(self, audio: Audio, with_scores: bool) -> tuple[Transcript, float]:
        """Transcribes a recording in the engine's batch.

        Args:
          audio: see `SpeechTokenizer.encode`.
          with_scores: whether the score `read_aloud` is computed, and with it `understood`.

        Returns:
          The transcript, and the seconds of the recording.

        Raises:
          InputError: see `SpiritLM.transcribe`.
        """
        settings = self.lm.transcription_config
        wave = await self.in_thread(load_audio, audio)
        seconds = len(wave) / SAMPLE_RATE
        encode = functools.partial(transcription.encode_recordings, self.lm, [wave])
        strings = await self.in_thread(encode, {0: wave})
        if not strings:
            return Transcript("", None, None, None, has_speech=False), seconds
        tokenizer = self.lm.text_tokenizer
        prompt = transcription.fill(settings.prompt, {"speech": strings[0]}.__getitem__, tokenizer)
        config = GenerationConfig(max_new_tokens=settings.max_new_tokens)
        request = await self.in_thread(self.lm.make_request, prompt, "text", config)
        (ticket,) = self.submit([request], is_streamed=False)
        generation = await ticket.finish()
        text = tokenizer.decode(generation.ids)
        text = (text.split(settings.end)[0] if settings.end else text).strip()
        log_prob = sum(generation.log_probs) / len(generation.log_probs)
        if not text:
            return Transcript("", None, None, None, has_speech=False), seconds
        problem = transcription.find_problem(settings, wave)
        transcript = Transcript(text, log_prob, None, None, problem=problem)
        if with_scores:
            score = functools.partial(transcription.score_read_aloud, self.lm, settings)
            scores = await self.in_thread(score, {0: text}, strings)
            transcript = dataclasses.replace(transcript, read_aloud=scores.get(0))
            transcript = transcription.apply_thresholds(settings, transcript)
        return transcript, seconds


def sampling(
    temperature: float,
    top_p: float = 1.0,
    seed: int | None = None,
    **settings: Any,
) -> GenerationConfig:
    """Settings of generation from those of a client.

    Args:
      temperature: 0 takes the likeliest token each time; the other settings of sampling then
        change nothing, as in OpenAI's interface.
      top_p, seed: None for a random seed.
      settings: further fields of `GenerationConfig`.

    Raises:
      InputError: a setting is out of range.
    """
    seed = secrets.randbelow(2**32) if seed is None else seed
    if temperature == 0:
        idle = {"top_k", "min_p"}
        settings = {name: value for name, value in settings.items() if name not in idle}
        # Checks the values that change nothing.
        GenerationConfig(do_sample=True, top_p=top_p, seed=seed)
        return GenerationConfig(do_sample=False, seed=seed, **settings)
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; expected 0 or more.")
    return GenerationConfig(
        do_sample=True, temperature=temperature, top_p=top_p, seed=seed, **settings
    )
