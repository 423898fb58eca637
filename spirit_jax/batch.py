"""Generation for a file of requests: JSON lines in, JSON lines and WAV files out.

A request is a JSON object:

    {"id": "a", "inputs": [["text", "what is two plus two"]], "to": "text", "max_new_tokens": 20}

`inputs` are pairs as in `SpiritLM.build_prompt`, or `prompt` is a prompt string in place of them.
`to` is a modality; `speaker` and `style` choose the voice; all other fields are those of
`GenerationConfig`. Results are appended to `results.jsonl` one by one, so an interrupted command
resumes. Requests that failed are tried again when it resumes. A result belongs to its request, the
content of the request's recordings, and the model; if one of them has changed, resuming is refused.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spirit_jax import checksums, files, model_folder, units
from spirit_jax.audio import SAMPLE_RATE, write_wav
from spirit_jax.errors import InputError, ResourceError
from spirit_jax.files import lock
from spirit_jax.generation.config import GenerationConfig
from spirit_jax.generation.engine import Engine
from spirit_jax.generation.outputs import limit_speech
from spirit_jax.generation.request import Generation
from spirit_jax.markup import Markup
from spirit_jax.spiritlm import SpiritLM
from spirit_jax.vocab import Modality

RESULTS = "results.jsonl"
MAX_ID_BYTES = 200  # file names are an id and a number; file systems allow 255 bytes
WAITING = 2  # requests per row of the engine that are prepared in advance
SETTINGS = tuple(field.name for field in dataclasses.fields(GenerationConfig))
FIELDS = ("id", "inputs", "prompt", "to", "speaker", "style", *SETTINGS)


@dataclasses.dataclass(frozen=True)
class BatchRequest:
    """A line of the file of requests.

    Attributes:
      id: of the request and of its result.
      digest: a hash, to notice changes when the command is resumed: of the line, then also of the
        model, and before it is generated for, also of its recordings.
      fields: the JSON object.
    """

    id: str
    digest: str
    fields: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Progress:
    """What was generated so far: requests, those that failed, tokens, and seconds of speech."""

    done: int = 0
    failed: int = 0
    tokens: int = 0
    seconds: float = 0.0


def read_requests(path: str | Path) -> list[BatchRequest]:
    """The requests of a JSON lines file.

    Raises:
      InputError: a line is not a JSON object, has an unknown field or no content, or an id twice.
    """
    requests = []
    known: set[str] = set()
    for number, fields in enumerate(files.read_json_objects(path), 1):
        name = str(fields.get("id", number))
        if unknown := [field for field in fields if field not in FIELDS]:
            raise InputError(
                f"{path}: request '{name}' has the unknown field '{unknown[0]}'; known are "
                f"{', '.join(FIELDS)}."
            )
        if ("inputs" in fields) == ("prompt" in fields):
            raise InputError(f"{path}: request '{name}' needs either 'inputs' or 'prompt'.")
        can_name_file = Path(name).name == name.strip() != "" and name.isprintable()
        if name in known or not can_name_file or len(name.encode()) > MAX_ID_BYTES:
            problem = "is there twice" if name in known else "cannot be part of a file name"
            raise InputError(f"{path}: the id {name[:80]!r} {problem}.")
        known.add(name)
        requests.append(BatchRequest(name, checksums.of_value(fields)[:16], fields))
    return requests


def run(
    lm: SpiritLM,
    requests: list[BatchRequest],
    output: str | Path,
    rows: int,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Generates for requests, and writes `results.jsonl` and WAV files.

    A request that cannot be used has an "error" as its result; the others are not affected.

    Args:
      lm: the model.
      requests: from `read_requests`.
      output: folder to write to; requests that have a result there are skipped, unless it is an
        error.
      rows: how many requests decode together.
      report: called with the progress after each result.

    Returns:
      The final progress, with results of earlier runs.

    Raises:
      InputError: the folder cannot be written, is in use, or has results of other requests, of
        other recordings or of another model.
    """
    output = files.as_path(output)
    requests = _add_model(requests, lm)
    with lock.hold(output, "generate.lock", output, "output") as held:
        path = output / RESULTS
        done = _read_results(path, requests, lm.vocab.markup)
        progress = Progress()
        for result in done.values():
            progress = _add(progress, result)
        waiting = (request for request in requests if request.id not in done)
        with files.GrowingFile(path) as file:
            for result in _generate(lm, waiting, output, lm.engine(rows)):
                held.check()
                try:
                    file.write((json.dumps(result, ensure_ascii=False) + "\n").encode())
                except OSError as error:
                    raise files.unwritable(path, error) from error
                progress = _add(progress, result)
                report(progress)
    return progress


def _add_model(requests: list[BatchRequest], lm: SpiritLM) -> list[BatchRequest]:
    """The requests with digests that also depend on the model."""
    model = model_folder.fingerprint(lm.folder)
    return [
        dataclasses.replace(request, digest=checksums.of_value([request.digest, model])[:16])
        for request in requests
    ]


def _add_recordings(request: BatchRequest, notation: Markup) -> BatchRequest:
    """The request with a digest that also depends on the content of its recordings.

    Raises:
      InputError: a recording cannot be read.
    """
    contents = [
        checksums.of_file(path) for path in _recordings(request.fields.get("inputs"), notation)
    ]
    if not contents:
        return request
    digest = checksums.of_value([request.digest, *contents])[:16]
    return dataclasses.replace(request, digest=digest)


def _recordings(inputs: Any, notation: Markup) -> Iterator[str]:
    """The paths among the inputs of a request; inputs that are not pairs are ignored."""
    for item in inputs if isinstance(inputs, list) else ():
        if isinstance(item, list) and len(item) == 2 and isinstance(item[1], str):
            is_speech = Modality.of(item[0]) is Modality.SPEECH
            if is_speech and not units.is_unit_string(item[1], notation):
                yield item[1]


def _generate(
    lm: SpiritLM, requests: Iterator[BatchRequest], output: Path, engine: Engine
) -> Iterator[dict[str, Any]]:
    """Yields results as they are completed; reads further requests as rows become free."""
    running: list[tuple[BatchRequest, str, Generation]] = []
    more = True
    while more or running:
        while more and len(running) < WAITING * engine.rows:
            request = next(requests, None)
            if request is None:
                more = False
                break
            try:
                # Before they are read: if a recording changes meanwhile, resuming is refused.
                request = _add_recordings(request, lm.vocab.markup)
                prompt = _prompt_of(lm, request)
                running.append((request, prompt, lm.submit(engine, prompt, **_settings(request))))
            except ResourceError:  # not the fault of the request
                raise
            except InputError as error:
                yield _start(request) | {"error": str(error)}
        if not running:
            continue
        engine.step()
        for entry in [entry for entry in running if entry[2].done]:
            running.remove(entry)
            yield _result(lm, *entry, output)


def _result(
    lm: SpiritLM, request: BatchRequest, prompt: str, generation: Generation, output: Path
) -> dict[str, Any]:
    generated = lm.generated_string(generation)
    voice = request.fields.get("speaker"), request.fields.get("style")
    try:
        (pieces,) = lm.decode_outputs([prompt], [generated], *voice)
    except ResourceError:
        raise
    except InputError as error:
        return _start(request) | {"error": str(error)}
    outputs = []
    seconds = generation.request.config.max_speech_seconds
    for number, piece in enumerate(limit_speech(pieces, seconds)):
        if piece.content_type is Modality.TEXT:
            outputs.append({"text": piece.content})
            continue
        name = f"{request.id}-{number}.wav"
        write_wav(output / name, piece.content)
        outputs.append({"speech": name, "seconds": round(len(piece.content) / SAMPLE_RATE, 3)})
    return _start(request) | {
        "outputs": outputs,
        "generated": generated,
        "tokens": len(generation.ids),
        "log_prob": sum(generation.log_probs),
    }


def _start(request: BatchRequest) -> dict[str, Any]:
    return {"id": request.id, "request": request.digest}


def _prompt_of(lm: SpiritLM, request: BatchRequest) -> str:
    fields = request.fields
    modality = fields.get("to", Modality.ARBITRARY)
    if fields.get("speaker") is not None or fields.get("style") is not None:
        lm.speech_tokenizer.find_voice(fields.get("speaker"), fields.get("style"))
    if "prompt" not in fields:
        return lm.build_prompt(fields["inputs"], modality)
    if not isinstance(fields["prompt"], str):
        raise InputError("'prompt' is not a string.")
    return fields["prompt"]


def _settings(request: BatchRequest) -> dict[str, Any]:
    fields = request.fields
    options = {name: value for name, value in fields.items() if name in SETTINGS}
    return {"output_modality": fields.get("to", Modality.ARBITRARY), **options}


def _read_results(
    path: Path, requests: list[BatchRequest], notation: Markup
) -> dict[str, dict[str, Any]]:
    """Results by id; errors and an incomplete last line are removed, also from the file."""
    if not path.is_file():
        return {}
    rows = [value for _, value in files.read_json_lines(path)]
    if rows and isinstance(rows[-1], InputError):
        rows.pop()
    requests_by_id = {request.id: request for request in requests}
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise InputError(f"{path}: is damaged; use another output folder.")
        _check_same_request(path, row, requests_by_id.get(row["id"]), notation)
    rows = [row for row in rows if "error" not in row]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    files.write_text(path, "".join(lines))
    return {row["id"]: row for row in rows}


def _check_same_request(
    path: Path, row: dict[str, Any], request: BatchRequest | None, notation: Markup
) -> None:
    """Raises an `InputError` if a result is not that of a request with the same id."""
    if request is not None and "error" in row:
        return  # it is tried again, with whatever was corrected
    try:
        digest = None if request is None else _add_recordings(request, notation).digest
    except ResourceError:
        raise
    except InputError as error:
        raise InputError(
            f"{path}: the recording of request '{row['id']}' cannot be compared with that of its "
            f"result ({str(error).rstrip('.')}); restore it, or use another output folder."
        ) from error
    if digest != row.get("request"):
        raise InputError(
            f"{path}: has the result of another request '{row['id']}', of another recording, or of "
            "another model; use another output folder."
        )


def _add(progress: Progress, result: dict[str, Any]) -> Progress:
    return Progress(
        progress.done + 1,
        progress.failed + ("error" in result),
        progress.tokens + result.get("tokens", 0),
        progress.seconds + sum(piece.get("seconds", 0) for piece in result.get("outputs", [])),
    )
