"""/v1/completions: continues texts, prompt strings or token ids."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse

from spirit_jax.errors import InputError
from spirit_jax.generation import request as requests_lib
from spirit_jax.generation.prompt_stream import PromptReader
from spirit_jax.serving.bodies import MAX_CHOICES, CompletionBody
from spirit_jax.serving.errors import ApiError, respond
from spirit_jax.serving.service import Service, sampling
from spirit_jax.serving.worker import Ticket
from spirit_jax.spiritlm import SpiritLM

router = APIRouter()
DONE = "data: [DONE]\n\n"


@router.post("/completions")
async def complete(body: CompletionBody, request: Request) -> Any:
    """Continues prompts."""
    service: Service = request.app.state.service
    service.check_model(body.model)
    prompts = _list_prompts(body)
    if len(prompts) * (body.n or 1) > MAX_CHOICES:
        raise ApiError(400, f"A request may have at most {MAX_CHOICES} choices.", None, "prompt")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options are for stream=true.", None, "stream_options")
    requests = await service.in_thread(_make_requests, service.lm, body, prompts)
    tickets = service.submit(requests, bool(body.stream))
    choices = [_Choice(index, ticket, service.lm, body) for index, ticket in enumerate(tickets)]
    answer = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.model,
    }
    events = _merge(choices)
    try:
        if body.stream:
            first = await anext(events)  # an error of the request has a status then
            lines = _stream(answer, first, events, choices, body)
            return StreamingResponse(lines, media_type="text/event-stream")
        async for _ in events:
            pass
    except BaseException:
        await events.aclose()
        raise
    answer["choices"] = [choice.whole() for choice in choices]
    return JSONResponse(answer | {"usage": _usage(choices, body.n or 1)})


class _Choice:
    """A generation of the response."""

    def __init__(self, index: int, ticket: Ticket, lm: SpiritLM, body: CompletionBody):
        self.index, self.ticket, self._body = index, ticket, body
        self._lm = lm
        stops = ticket.request.config.stop
        self._reader = PromptReader(lm.text_tokenizer, lm.vocab, stops)
        self._parts: list[dict] = []

    async def read(self) -> AsyncIterator[dict]:
        """Yields the choice's part of each event; the last one has a finish_reason."""
        async for ids, log_probs in self.ticket.chunks():
            yield self._keep(self._add(ids, log_probs))
        yield self._keep(self._part(self._reader.finish(), [], None, self._finish_reason()))

    def whole(self) -> dict:
        """The choice of a response that is not streamed."""
        whole = {"index": self.index, "text": "".join(part["text"] for part in self._parts)}
        whole["logprobs"] = None
        if self._body.logprobs is not None:
            each = [part["logprobs"] for part in self._parts if part["logprobs"]]
            names = "tokens", "token_logprobs", "text_offset"
            whole["logprobs"] = {name: [x for each_ in each for x in each_[name]] for name in names}
            whole["logprobs"]["top_logprobs"] = None
        if self._body.return_token_ids:
            whole["token_ids"] = self.ticket.generation.ids
            whole["prompt_token_ids"] = list(self.ticket.request.prompt)
        return whole | {"finish_reason": self._parts[-1]["finish_reason"]}

    def _add(self, ids: list[int], log_probs: list[float]) -> dict:
        if self._body.logprobs is None:
            return self._part(self._reader.add(ids), ids, None, None)
        text, offsets = "", []
        for new in ids:
            offsets.append(self._reader.size)
            text += self._reader.add([new])
        details = {
            "tokens": [self._lm.text_tokenizer.decode([new]) for new in ids],
            "token_logprobs": log_probs,
            "text_offset": offsets,
            "top_logprobs": None,
        }
        return self._part(text, ids, details, None)

    def _part(self, text: str, ids: list[int], log_probs: dict | None, reason: str | None) -> dict:
        part = {"index": self.index, "text": text, "logprobs": log_probs, "finish_reason": reason}
        return part | ({"token_ids": ids} if self._body.return_token_ids else {})

    def _keep(self, part: dict) -> dict:
        self._parts.append(part)
        return part

    def _finish_reason(self) -> str:
        """Why it ended; ids that end with EOS or with a stop string include it."""
        generation = self.ticket.generation
        ids, stop = generation.ids, generation.request.stop
        has_stopped = bool(ids) and ids[-1] in self._lm.vocab.eos
        has_stopped |= stop is not None and stop.has_stopped
        return "stop" if has_stopped else "length"


async def _merge(choices: list[_Choice]) -> AsyncIterator[dict]:
    """The parts of all choices while they are generated; closing it cancels all generations."""
    queue: asyncio.Queue[Any] = asyncio.Queue()

    async def read(choice: _Choice) -> None:
        try:
            async for part in choice.read():
                queue.put_nowait(part)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(read(choice)) for choice in choices]
    left = len(choices)
    try:
        while left:
            part = await queue.get()
            if isinstance(part, Exception):
                raise part
            if part is None:
                left -= 1
            else:
                yield part
    finally:
        for task in tasks:
            task.cancel()
        for choice in choices:
            choice.ticket.is_cancelled = True


async def _stream(
    answer: dict,
    first: dict,
    events: AsyncIterator[dict],
    choices: list[_Choice],
    body: CompletionBody,
) -> AsyncIterator[str]:
    """The lines of a streamed response."""
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    usage = {"usage": None} if with_usage else {}
    async with contextlib.aclosing(events):
        yield _event(answer | {"choices": [first]} | usage)
        try:
            async for part in events:
                if part["text"] or part["finish_reason"] or part.get("token_ids"):
                    yield _event(answer | {"choices": [part]} | usage)
        except Exception as error:  # too late for a status
            yield f"data: {bytes(respond(error).body).decode()}\n\n"
            return
        if with_usage:
            yield _event(answer | {"choices": [], "usage": _usage(choices, body.n or 1)})
        yield DONE


def _event(value: dict) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _usage(choices: list[_Choice], samples: int) -> dict[str, int]:
    prompt = sum(len(choice.ticket.request.prompt) for choice in choices[::samples])
    generated = sum(len(choice.ticket.generation.ids) for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }


def _list_prompts(body: CompletionBody) -> list[str | list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise ApiError(400, "The field 'prompt' is empty.", None, "prompt")
    return prompt


def _make_requests(
    lm: SpiritLM, body: CompletionBody, prompts: list[str | list[int]]
) -> list[requests_lib.Request]:
    """A request for each sample of each prompt."""
    config = sampling(
        1.0 if body.temperature is None else body.temperature,
        1.0 if body.top_p is None else body.top_p,
        body.seed,
        max_new_tokens=body.max_tokens or lm.max_tokens,
        stop=body.stop or (),
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        max_speech_seconds=body.max_speech_seconds,
    )
    requests = []
    for prompt in prompts:
        if isinstance(prompt, str):
            prompt = _prompt_string(lm, prompt, body.modality)
        elif outside := [token for token in prompt if not 0 <= token < lm.vocab.size]:
            raise InputError(
                f"The prompt has the token {outside[0]}, but the model has 0 to "
                f"{lm.vocab.size - 1}."
            )
        requests += [
            lm.make_request(prompt, body.modality, config, sample) for sample in range(body.n or 1)
        ]
    return requests


def _prompt_string(lm: SpiritLM, prompt: str, modality: str) -> str:
    """A prompt string as it is, and that of a text without any marker or unit."""
    if any(part.is_token for part in lm.vocab.markup.parse(prompt)):
        return prompt
    return lm.build_prompt([("text", prompt)], modality)
