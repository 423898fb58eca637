"""`spirit-jax generate`: continues a prompt of text and speech, or transcribes recordings."""

import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from spirit_jax import files, model_folder
from spirit_jax.cli import checks
from spirit_jax.cli.options import ModelDir, Speaker
from spirit_jax.errors import InputError, plural
from spirit_jax.generation.config import GenerationConfig

Inputs = Annotated[list[str] | None, typer.Argument(help='The prompt: "text:..." and speech:FILE')]
To = Annotated[
    Literal["text", "speech", "arbitrary"],
    typer.Option(help="What to generate", case_sensitive=False),
]
MaxNewTokens = Annotated[int, typer.Option(help="Maximum number of tokens to generate")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature; below 1 is less random")]
TopP = Annotated[
    float, typer.Option(help="Sample among the likeliest tokens of this total probability")
]
TopK = Annotated[int, typer.Option(help="Sample among this many likeliest tokens; 0 for all")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 reduces repetition")]
Greedy = Annotated[
    bool, typer.Option("--greedy", help="Take the likeliest token instead of sampling")
]
Seed = Annotated[int, typer.Option(help="Random seed of sampling")]
StopStrings = Annotated[
    list[str] | None, typer.Option(help="End before this string in the text; may be repeated")
]
MaxSpeechSeconds = Annotated[float | None, typer.Option(help="Maximum seconds of generated speech")]
FollowMarkers = Annotated[
    bool,
    typer.Option("--follow-markers", help="Only text after [Text], only units after [Speech]"),
]
OutputFolder = Annotated[Path, typer.Option(help="Folder for the WAV files")]
Transcribe = Annotated[
    bool, typer.Option("--transcribe", help="Transcribe each speech:FILE separately")
]
Batch = Annotated[
    Path | None, typer.Option(help="JSON lines file of requests; results go to --output")
]
Rows = Annotated[
    int, typer.Option(min=1, max=4096, help="With --batch: requests that decode together")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="With --transcribe: print a JSON object for each file")
]


def generate(
    context: typer.Context,
    model: ModelDir,
    inputs: Inputs = None,
    to: To = "arbitrary",
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.9,
    top_p: TopP = 0.95,
    top_k: TopK = 0,
    repetition_penalty: RepetitionPenalty = 1.0,
    greedy: Greedy = False,
    seed: Seed = 0,
    stop: StopStrings = None,
    max_speech_seconds: MaxSpeechSeconds = None,
    follow_markers: FollowMarkers = False,
    speaker: Speaker = None,
    output: OutputFolder = Path("."),
    transcribe: Transcribe = False,
    batch: Batch = None,
    rows: Rows = 16,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt of text and speech; prints text, writes speech to WAV files.

    The files are speech-0.wav, speech-1.wav, ...; existing files are not overwritten.

    With --batch, each line of a file is a request, such as
    {"id": "a", "inputs": [["text", "hello"]], "to": "speech", "max_new_tokens": 50, "seed": 1};
    OUTPUT/results.jsonl and WAV files have the results. The same command resumes, and tries
    requests that failed again.

    With --transcribe, print the transcript and scores of each recording: "not understood" if the
    scores are below their thresholds or the recording is too short or clipped, "nothing was said"
    for silence and noise.
    """
    if batch is not None:
        _generate_batch(context, model, batch, output, rows)
        return
    checks.refuse_idle(context, ("rows",), "without --batch there is one request")
    if not inputs:
        raise InputError('Give a prompt, such as "text:hello", or requests with --batch FILE.')
    prompt = [_parse_input(item) for item in inputs]
    if transcribe:
        _transcribe(context, model, prompt, as_json)
        return
    _refuse_idle(context, greedy, to)
    sampling = {} if greedy else {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    with checks.naming_options(context):
        options = GenerationConfig(
            max_new_tokens,
            not greedy,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=tuple(stop or ()),
            max_speech_seconds=max_speech_seconds,
            follow_markers=follow_markers,
            **sampling,
        )
    _continue(model, prompt, to, speaker, options, output)


def _refuse_idle(context: typer.Context, greedy: bool, to: str) -> None:
    """Refuses options that have no effect without --transcribe, or with --greedy or --to."""
    from spirit_jax.vocab import Modality

    if checks.is_given(context, "as_json"):
        raise InputError("--json is for --transcribe.")
    if greedy:
        idle = "temperature", "top_p", "top_k", "seed"
        checks.refuse_idle(context, idle, "--greedy takes the likeliest token each time")
    if Modality.of(to) is Modality.TEXT:
        idle = "speaker", "output", "max_speech_seconds"
        checks.refuse_idle(context, idle, "--to text generates no speech")
    if Modality.of(to) is not Modality.ARBITRARY:
        checks.refuse_idle(context, ("follow_markers",), f"--to {to} generates no markers")


def _continue(
    model: Path,
    prompt: list[tuple[str, str]],
    to: str,
    speaker: str | None,
    options: GenerationConfig,
    output: Path,
) -> None:
    """Continues a prompt; prints text, and writes speech to WAV files in `output`."""
    folder = model_folder.find_language_model(model)
    if speaker is not None:
        checks.voice(folder, speaker)
    checks.output_folder(output)
    from spirit_jax import audio as audio_lib
    from spirit_jax import transcription
    from spirit_jax.spiritlm import SpiritLM

    lm = SpiritLM.from_pretrained(model)
    pieces = lm.generate(
        prompt, output_modality=to, speaker_id=speaker, **dataclasses.asdict(options)
    )
    for piece in pieces:
        if piece.content_type == "text":
            print(f"text: {transcription.drop_flag(folder, piece.content)}")
        else:
            write = functools.partial(audio_lib.write_wav, samples_t=piece.content, overwrite=False)
            path = checks.write_numbered(output, "speech", ".wav", write)
            print(f"speech: {path}")
    if not pieces:
        print("nothing was generated (the first token was EOS)", file=sys.stderr)


def _generate_batch(
    context: typer.Context, model: Path, path: Path, output: Path, rows: int
) -> None:
    """Generates for the requests of a file, with progress on standard error."""
    used = "context", "model", "batch", "output", "rows"
    idle = [name for name in context.params if name not in used]
    checks.refuse_idle(context, idle, "with --batch each request has its settings")
    model_folder.find_language_model(model)
    checks.existing_file(path)
    checks.output_folder(output)
    from spirit_jax import batch
    from spirit_jax.data.progress import counting
    from spirit_jax.spiritlm import SpiritLM

    requests = batch.read_requests(path)
    lm = SpiritLM.from_pretrained(model)
    started, last = time.monotonic(), batch.Progress()
    with counting("requests", len(requests)) as count:

        def report(progress: batch.Progress) -> None:
            nonlocal last
            count(progress.done - last.done)
            last = progress

        last = batch.run(lm, requests, output, rows, report)
    seconds = max(time.monotonic() - started, 1e-9)
    print(
        f"{plural(last.done, 'result')} in {output / batch.RESULTS} ({last.failed} failed): "
        f"{plural(last.tokens, 'token')} and {last.seconds:.1f} s of speech, "
        f"{last.tokens / seconds:.0f} tokens and {last.seconds / seconds:.1f} s of speech a second"
    )


def _transcribe(
    context: typer.Context, model: Path, inputs: list[tuple[str, str]], as_json: bool
) -> None:
    """Prints the transcript and scores of each recording."""
    used = "context", "model", "inputs", "transcribe", "as_json"
    idle = [name for name in context.params if name not in used]
    checks.refuse_idle(context, idle, "--transcribe only transcribes")
    if texts := [content for kind, content in inputs if kind == "text"]:
        raise InputError(f"--transcribe takes only speech:FILE, not 'text:{texts[0][:40]}'.")
    from spirit_jax import transcription

    transcription.read_config(model_folder.find_language_model(model))
    from spirit_jax.spiritlm import SpiritLM

    lm = SpiritLM.from_pretrained(model)
    paths = [path for _, path in inputs]
    for path, transcript in zip(paths, lm.transcribe(paths), strict=True):
        if as_json:
            print(json.dumps({"audio": path} | dataclasses.asdict(transcript)))
            continue
        print(f"{path}: {transcript.describe()}")
        if transcript.has_speech:
            print(f"  {transcription.describe_scores(lm.transcription_config, transcript)}")


def _parse_input(item: str) -> tuple[str, str]:
    kind, separator, content = item.partition(":")
    if not separator or kind not in ("text", "speech"):
        raise InputError(f"'{item}' is not an input; write \"text:...\" or speech:FILE.")
    if kind == "speech":
        if not content:
            raise InputError("'speech:' names no file; write speech:FILE.")
        checks.existing_file(files.as_path(content))
    return kind, content
