"""/v1/audio/speech and /v1/audio/transcriptions."""

import base64
import json
import math
import re
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.datastructures import UploadFile

from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.errors import InputError
from spirit_jax.serving import encoding
from spirit_jax.serving.bodies import SpeechBody
from spirit_jax.serving.errors import ApiError, respond
from spirit_jax.serving.service import MAX_SPEECH_TOKENS, Service, sampling
from spirit_jax.vocab import Modality

router = APIRouter()
_STYLE = re.compile(r"\[St(\d{1,4})\]")
TRANSCRIPTION_FIELDS = (
    "file model response_format language prompt temperature stream timestamp_granularities "
    "timestamp_granularities[] include include[] chunking_strategy"
).split()
FORMATS = ("json", "text", "verbose_json")


@router.post("/audio/speech")
async def speak(body: SpeechBody, request: Request) -> Any:
    """Reads a text aloud."""
    service: Service = request.app.state.service
    service.check_model(body.model)
    is_sse = body.stream_format == "sse"
    content_type, make_encoder = encoding.find_format(
        body.response_format or "mp3", body.stream or is_sse
    )
    voice, style = find_voice(service, body.voice, body.style)
    config = sampling(
        body.temperature or 0.0,
        1.0 if body.top_p is None else body.top_p,
        body.seed,
        max_new_tokens=MAX_SPEECH_TOKENS,
        max_speech_seconds=body.max_speech_seconds,
    )
    prompt = service.speech_prompt(body.input, style)
    data = _encode(service, make_encoder(), prompt, config, voice)
    first = await anext(data)  # an error of the request has a status then
    headers = {"x-sample-rate": str(SAMPLE_RATE)}
    if is_sse:
        lines = _as_events(first, data)
        return StreamingResponse(lines, media_type="text/event-stream", headers=headers)
    return StreamingResponse(_rest(first, data), media_type=content_type, headers=headers)


def find_voice(
    service: Service, speaker: str | int | None, style: str | int | None
) -> tuple[tuple[Any, Any], str | None]:
    """The vocoder's voice for a client's fields, and the style token of the prompt.

    Raises:
      InputError: there is no such speaker or style.
    """
    vocab = service.lm.vocab
    speaker = None if speaker == "default" else speaker
    token = None
    if vocab.style_units and style is not None:
        match = _STYLE.fullmatch(str(style))
        if match is None or int(match[1]) >= vocab.style_units:
            raise InputError(
                f"'{str(style)[:40]}' is not a style of this model; known are [St0] to "
                f"[St{vocab.style_units - 1}]."
            )
        token, style = f"[St{int(match[1])}]", None
    service.lm.speech_tokenizer.find_voice(speaker, style)
    return (speaker, style), token


async def _encode(service, encoder, prompt, config, voice) -> AsyncIterator[bytes]:
    """The bytes of speech while it is generated.

    Raises:
      InputError: no speech was generated, or see `Service.parts`.
    """
    samples = 0
    async for part in service.parts(prompt, Modality.SPEECH, config, voice):
        if part.content_type is Modality.SPEECH and len(part.content):
            samples += len(part.content)
            wave = encoding.to_int16(part.content)
            if data := await service.in_thread(encoder.encode, wave):
                yield data
    service.metrics.speech.inc(samples / SAMPLE_RATE)
    if not samples:
        raise InputError("The model generated no speech for this text; change it.")
    if data := await service.in_thread(encoder.finish):
        yield data


async def _rest(first: bytes, data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in data:
        yield part


async def _as_events(first: bytes, data: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The events of OpenAI's stream_format "sse"."""
    try:
        async for part in _rest(first, data):
            audio = base64.b64encode(part).decode()
            yield _event({"type": "speech.audio.delta", "audio": audio})
    except Exception as error:  # too late for a status
        yield f"data: {bytes(respond(error).body).decode()}\n\n"
        return
    yield _event({"type": "speech.audio.done"})


def _event(value: dict) -> str:
    return f"data: {json.dumps(value)}\n\n"


@router.post("/audio/transcriptions")
async def transcribe(request: Request) -> Any:
    """Transcribes a recording."""
    service: Service = request.app.state.service
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "Send the recording as multipart/form-data, in the field 'file'.")
    async with request.form(max_files=1, max_fields=32) as form:
        for name in form:
            if name not in TRANSCRIPTION_FIELDS:
                raise ApiError(400, f"'{name[:40]}' is not a field of this endpoint.", None, name)
        service.check_model(form.get("model"))
        output = _check_fields(form)
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ApiError(400, "The field 'file' has no recording.", None, "file")
        name, data = file.filename or "the recording", await file.read()
    try:
        transcript, seconds = await service.transcribe(data, output == "verbose_json")
    except InputError as error:
        message = str(error).replace("the bytes given", name)
        raise type(error)(message) from error
    if output == "text":
        return PlainTextResponse(transcript.text + "\n")
    if output == "json":
        return JSONResponse({"text": transcript.text})
    return JSONResponse(
        {
            "task": "transcribe",
            "language": form.get("language") or "und",  # not detected
            "duration": round(seconds, 3),
            "text": transcript.text,
            "log_prob": transcript.log_prob,
            "read_aloud": transcript.read_aloud,
            "understood": transcript.understood,
        }
    )


def _check_fields(form: Any) -> str:
    """The output format; raises `ApiError` for what is not supported."""
    output = form.get("response_format") or "json"
    if output in ("srt", "vtt"):
        message = f"The format '{output}' needs time stamps, which this model does not give."
        raise ApiError(400, message, None, "response_format")
    if output not in FORMATS:
        message = f"'{str(output)[:40]}' is not a format; known are {', '.join(FORMATS)}."
        raise ApiError(400, message, None, "response_format")
    for name in ("timestamp_granularities", "timestamp_granularities[]"):
        if form.get(name):
            raise ApiError(400, "This model does not give time stamps.", None, name)
    for name in ("prompt", "include", "include[]", "chunking_strategy"):
        if form.get(name) and form.get(name) != "auto":
            raise ApiError(400, f"The field '{name}' is not supported; leave it out.", None, name)
    if str(form.get("stream", "false")).lower() not in ("false", "0", ""):
        message = "A transcription is not streamed; leave out the field 'stream'."
        raise ApiError(400, message, None, "stream")
    try:
        temperature = float(form.get("temperature") or 0)
    except ValueError:
        temperature = math.nan
    if temperature != 0:
        message = "Transcription takes the likeliest words; the temperature can only be 0."
        raise ApiError(400, message, None, "temperature")
    return output
