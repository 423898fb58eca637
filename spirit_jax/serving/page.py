"""The page: text or a recording in; text, speech, tokens and a picture out."""

import asyncio
import contextlib
import hmac
import io
from collections.abc import AsyncIterator
from typing import Any

import gradio
import numpy as np
from fastapi import FastAPI
from PIL import Image

from spirit_jax import pictures, units
from spirit_jax.audio import SAMPLE_RATE, load_audio
from spirit_jax.errors import InputError
from spirit_jax.generation.outputs import OutputPart
from spirit_jax.generation.prompt_stream import PromptReader
from spirit_jax.serving.encoding import to_int16
from spirit_jax.serving.errors import ApiError
from spirit_jax.serving.service import Service, sampling
from spirit_jax.serving.speech import find_voice
from spirit_jax.speech_tokenizer import VOCODER_RATE
from spirit_jax.vocab import Modality

# What to do, and the modality that is generated; None for tasks of their own.
READ, TRANSCRIBE = "read the text aloud", "transcribe the recording"
CONTINUE = {"continue in text": "text", "continue in speech": "speech", "continue": "arbitrary"}
TASKS = [*CONTINUE, READ, TRANSCRIBE]
DEFAULT_VOICE, ANY_STYLE = "default", "default"
# Files of the page are deleted when they are an hour old; a request has a shorter time limit.
CLEAN_EVERY, CLEAN_AGE = 600, 3600  # seconds
PAUSE = np.zeros(SAMPLE_RATE // 5, np.float32)  # between two pieces of speech
NOTICE_SECONDS = 1.0
PICTURE_HEIGHT = 3.2
LAST = object()
LONGEST_VIEW = 20_000  # characters of the token view
State = tuple[str, Any, str, Any]  # text, speech, token view, picture


def mount_page(app: FastAPI, service: Service) -> FastAPI:
    """Adds the page to an application, at "/"."""
    settings = service.settings
    login = None
    if settings.api_key is not None:
        login = lambda user, key: hmac.compare_digest(  # noqa: E731
            key.encode(), settings.api_key.encode()
        )
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gradio.mount_gradio_app(
        app,
        make_page(service),
        path="/",
        auth=login,
        auth_message="Any user name, and the API key as the password.",
        root_path=settings.root_path or None,
        max_file_size=settings.max_upload,
        ssr_mode=False,
        footer_links=[],
        theme=gradio.themes.Default(**fonts),  # Gradio's are fetched from the network
    )


def make_page(service: Service) -> gradio.Blocks:
    """The page of a model."""
    name = service.settings.name
    cleaning = (CLEAN_EVERY, CLEAN_AGE)
    with gradio.Blocks(title=name, analytics_enabled=False, delete_cache=cleaning) as page:
        gradio.Markdown(f"## {name}")
        with gradio.Row():
            with gradio.Column():
                task = gradio.Radio(TASKS, value=TASKS[0], label="Task", elem_id="task")
                text = gradio.Textbox(label="Text", lines=2, elem_id="text")
                recording = gradio.Audio(
                    label="Recording, after the text",
                    sources=["upload", "microphone"],
                    type="filepath",
                    elem_id="recording",
                    buttons=["download"],
                )
                settings = _make_settings(service)
                with gradio.Row():
                    run = gradio.Button("Run", variant="primary", elem_id="run")
                    stop = gradio.Button("Stop", elem_id="stop")
            with gradio.Column():
                said = gradio.Textbox(label="Generated text", lines=2, elem_id="said")
                speech = gradio.Audio(
                    label="Generated speech", format="wav", elem_id="speech", buttons=["download"]
                )
                tokens = gradio.Textbox(label="Tokens", lines=6, max_lines=16, elem_id="tokens")
        picture = gradio.Image(
            elem_id="picture", format="png", show_label=False, buttons=["download", "fullscreen"]
        )

        async def answer(task, text, recording, *values) -> AsyncIterator[State]:
            async for state in answer_on_page(service, task, text, recording, *values):
                yield state

        event = run.click(
            answer,
            [task, text, recording, *settings],
            [said, speech, tokens, picture],
            concurrency_limit=service.settings.max_concurrent,  # clients share the batch
            api_name="answer",
        )
        stop.click(None, cancels=[event])
    page.queue(max_size=service.settings.max_concurrent, api_open=True)
    return page


def _make_settings(service: Service) -> list[Any]:
    """The components of voice, style, length and sampling."""
    lm = service.lm
    with gradio.Row():
        voice = gradio.Dropdown([DEFAULT_VOICE, *_speakers(service)], label="Voice")
        style = gradio.Dropdown([ANY_STYLE, *_styles(service)], label="Style")
        length = gradio.Slider(
            1, min(2000, lm.max_tokens), value=200, step=1, label="Most tokens", elem_id="length"
        )
    with gradio.Row():
        temperature = gradio.Slider(0, 2, value=0.0, step=0.05, label="Temperature (0: likeliest)")
        top_p = gradio.Slider(0.01, 1, value=1.0, step=0.01, label="Top-p")
        seed = gradio.Number(value=0, precision=0, label="Seed")
    return [voice, style, length, temperature, top_p, seed]


def _speakers(service: Service) -> list[str]:
    vocoder = service.vocoder
    return [] if vocoder is None else _names(vocoder.speakers, vocoder.num_speakers)


def _styles(service: Service) -> list[str]:
    """Style tokens of an Expressive model; styles of the vocoder of a Base model."""
    if count := service.lm.vocab.style_units:
        return [f"[St{number}]" for number in range(count)]
    vocoder = service.vocoder
    return [] if vocoder is None else _names(vocoder.styles, vocoder.num_style_ids)


def _names(names: tuple[str, ...], count: int) -> list[str]:
    return [*names, *map(str, range(len(names), count))]


async def answer_on_page(
    service: Service,
    task: str,
    text: str,
    recording: str | None,
    voice: str = DEFAULT_VOICE,
    style: str = ANY_STYLE,
    length: int = 200,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = 0,
) -> AsyncIterator[State]:
    """What the page shows, as it comes.

    Args:
      service: the model.
      task: one of `TASKS`.
      text: the text of the prompt; may be empty.
      recording: the file of a recording, which follows the text; or None.
      voice, style: of `find_voice`, or "default".
      length: most tokens.
      temperature, top_p, seed: see `sampling`.

    Raises:
      gradio.Error: an input cannot be used.
    """
    try:
        if task not in TASKS:
            raise InputError(f"'{str(task)[:40]}' is not a task; known are {', '.join(TASKS)}.")
        if task == TRANSCRIBE:
            yield await _transcribe(service, recording)
            return
        speaker = None if voice in (None, DEFAULT_VOICE) else voice
        style = None if style in (None, ANY_STYLE) else style
        speaker_and_style, token = (None, None), None
        if speaker is not None or style is not None:
            speaker_and_style, token = find_voice(service, speaker, style)
        config = sampling(temperature, top_p, seed, max_new_tokens=length)
        modality = CONTINUE.get(task, "speech")
        prompt = await service.in_thread(_make_prompt, service, task, text, recording, token)
        async for state in _generate(service, prompt, modality, config, speaker_and_style):
            yield state
    except (InputError, ApiError) as error:
        message = str(getattr(error, "detail", error))
        raise gradio.Error(message, print_exception=False) from error


def _make_prompt(
    service: Service, task: str, text: str, recording: str | None, style: str | None
) -> str:
    text = (text or "").strip()
    if task == READ:
        if not text or recording is not None:
            raise InputError("Reading aloud needs a text, and no recording.")
        return service.speech_prompt(text, style)
    inputs = [("text", text)] if text else []
    inputs += [("speech", recording)] if recording is not None else []
    if not inputs:
        raise InputError("Give a text, a recording, or both.")
    return service.lm.build_prompt(inputs, CONTINUE[task]) + (style or "")


async def _generate(service, prompt, modality, config, voice) -> AsyncIterator[State]:
    lm = service.lm
    reader = PromptReader(lm.text_tokenizer, lm.vocab, config.stop)
    string, text, waves = "", "", {}

    def add(ids: list[int]) -> None:
        nonlocal string
        string += reader.add(ids)

    parts = service.parts(prompt, modality, config, voice, add)
    async for part in _with_notice(service, parts):
        if part is None:
            yield text, None, service.notice, None
            continue
        if part.content_type is Modality.SPEECH:
            waves.setdefault(part.number, []).append(part.content)
        else:
            text += part.content
            yield text, None, _view(prompt, string), None
    string += reader.finish()
    pieces = [np.concatenate(parts) for _, parts in sorted(waves.items())]
    wave = np.concatenate([part for piece in pieces for part in (piece, PAUSE)] or [PAUSE[:0]])
    picture = speech = None
    if len(wave):
        speech = SAMPLE_RATE, to_int16(wave)
        timed = await service.in_thread(_time_units, service, string) if len(pieces) == 1 else ()
        picture = await service.in_thread(
            _draw,
            pictures.Panel("generated speech: spectrogram, F0 (white dots) and units", wave, timed),
        )
    yield text, speech, _view(prompt, string), picture


async def _with_notice(
    service: Service, parts: AsyncIterator[OutputPart]
) -> AsyncIterator[OutputPart | None]:
    """The parts, and None whenever vLLM is waited for."""
    coming = asyncio.ensure_future(anext(parts, LAST))
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=NOTICE_SECONDS)
            if not done:
                if service.notice is not None:
                    yield None
                continue
            if coming.result() is LAST:
                return
            yield coming.result()
            coming = asyncio.ensure_future(anext(parts, LAST))
    finally:
        coming.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([coming])
        await parts.aclose()


async def _transcribe(service: Service, recording: str | None) -> State:
    if recording is None:
        raise InputError("Transcription needs a recording.")
    transcript, _ = await service.transcribe(recording, with_scores=True)
    wave, encoded = await service.in_thread(_encode, service, recording)
    timed = tuple(
        (first / VOCODER_RATE, frames / VOCODER_RATE, unit)
        for first, frames, unit in units.runs(encoded.hubert)
    )
    panel = pictures.Panel(f"recording: {transcript.describe()}", wave, timed)
    picture = await service.in_thread(_draw, panel)
    string = service.lm.speech_tokenizer.to_string(encoded)
    return transcript.describe(), None, string[:LONGEST_VIEW], picture


def _encode(service: Service, recording: str) -> tuple[np.ndarray, units.Units]:
    wave = load_audio(recording)
    return wave, service.lm.speech_tokenizer.encode(wave)


def _time_units(service: Service, string: str) -> tuple[tuple[float, float, int], ...]:
    """(start, length, unit) in seconds of the phonetic units of a prompt string."""
    parts = service.lm.vocab.markup.parse(string)
    numbers = [
        int(part.string[3:-1]) for part in parts if part.is_token and part.string.startswith("[Hu")
    ]
    vocoder = service.lm.speech_tokenizer.vocoder_stream
    ids_uc = np.zeros((len(numbers), len(vocoder.config.channels)), np.int32)
    ids_uc[:, 0] = numbers
    state, frames_u = vocoder.count_frames(vocoder.start(), ids_uc)
    _, last_u = vocoder.count_frames(state, None)
    seconds_u = np.concatenate([frames_u, last_u]) * vocoder.config.code_hop / SAMPLE_RATE
    starts_u = np.cumsum(seconds_u) - seconds_u
    return tuple(
        (float(s), float(n), unit) for s, n, unit in zip(starts_u, seconds_u, numbers, strict=True)
    )


def _draw(panel: pictures.Panel) -> Image.Image:
    data = io.BytesIO()
    pictures.draw(data, [panel], PICTURE_HEIGHT)
    data.seek(0)
    return Image.open(data).convert("RGB")


def _view(prompt: str, generated: str) -> str:
    """The token view: the prompt, an arrow, and what was generated."""
    return f"{prompt} → {generated}"[-LONGEST_VIEW:]
