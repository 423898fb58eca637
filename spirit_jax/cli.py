"""The command `spirit-jax`: one subcommand a stage. Only here is the environment read."""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console

from spirit_jax import audio as audio_lib
from spirit_jax.data import progress
from spirit_jax.errors import InputError

app = typer.Typer(
    help="Spirit LM: encode speech, resynthesise it, and generate text and speech.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ModelDir = Annotated[Path, typer.Argument(help="Model folder, as python -m convert.release writes")]


@app.command()
def encode(
    model: ModelDir,
    audio: Annotated[list[Path], typer.Argument(help="Audio files: any rate, channels and length")],
    string: Annotated[bool, typer.Option("--string", help="The token string instead")] = False,
    strict: Annotated[bool, typer.Option(help="Exit with status 1 if a file was skipped")] = False,
) -> None:
    """Print the units of recordings, a JSON line a file.

    A file that cannot be read is skipped, named on standard error and counted.
    """
    from spirit_jax.speech_tokenizer import SpeechTokenizer

    tokenizer = SpeechTokenizer.from_pretrained(model)
    skipped = 0
    for path in progress.watch(audio, "encoding", len(audio)):
        try:
            units = tokenizer.encode(path)
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
            skipped += 1
            continue
        values = {"string": tokenizer.to_string(units)} if string else units.to_dict()
        print(json.dumps({"audio": str(path)} | values), flush=True)
    if skipped:
        print(f"{skipped} of {len(audio)} files were skipped.", file=sys.stderr)
        if strict or skipped == len(audio):
            raise typer.Exit(1)


@app.command()
def resynth(
    model: ModelDir,
    source: Annotated[Path, typer.Argument(metavar="IN", help="Audio file")],
    output: Annotated[Path, typer.Argument(metavar="OUT.wav", help="WAV file to write")],
    speaker: Annotated[str | None, typer.Option(help="Speaker, by name or number")] = None,
    style: Annotated[str | None, typer.Option(help="Style, by name or number (Base)")] = None,
) -> None:
    """Speak a recording anew from its units alone, with their timing."""
    from spirit_jax.speech_tokenizer import SpeechTokenizer

    tokenizer = SpeechTokenizer.from_pretrained(model)
    units = tokenizer.encode(source)
    wave = tokenizer.decode(units, speaker_id=speaker, style_id=style)
    audio_lib.write_wav(output, wave)
    print(f"{output}: {len(wave) / audio_lib.SAMPLE_RATE:.2f} s from {len(units.hubert)} units")


@app.command()
def generate(
    model: ModelDir,
    inputs: Annotated[list[str], typer.Argument(help='The prompt: "text:..." and speech:FILE')],
    to: Annotated[str, typer.Option(help="text, speech or arbitrary")] = "arbitrary",
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens to add")] = 200,
    temperature: Annotated[float, typer.Option(help="Below 1 is more careful")] = 0.9,
    top_p: Annotated[float, typer.Option(help="Draw within this probability")] = 0.95,
    top_k: Annotated[int, typer.Option(help="Draw among this many; 0 for all")] = 0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 repeats less")] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token")] = False,
    seed: Annotated[int, typer.Option(help="The same seed draws the same")] = 0,
    speaker: Annotated[str | None, typer.Option(help="Speaker, by name or number")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the WAV files")] = Path("."),
) -> None:
    """Continue a prompt of text and speech; prints text, writes speech to WAV files."""
    from spirit_jax.spiritlm import SpiritLM

    prompt = [_parse_input(item) for item in inputs]
    lm = SpiritLM.from_pretrained(model)
    pieces = lm.generate(
        prompt,
        output_modality=to,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        do_sample=not greedy,
        seed=seed,
        speaker_id=speaker,
    )
    for number, piece in enumerate(pieces):
        if piece.content_type == "text":
            print(f"text: {piece.content}")
        else:
            path = output / f"speech-{number}.wav"
            audio_lib.write_wav(path, piece.content)
            print(f"speech: {path}")
    if not pieces:
        print("nothing was generated (the model ended at once)", file=sys.stderr)


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(help="JSONL manifest, folder of recordings or texts, or tfds:NAME:SPLIT"),
    ],
    output: Annotated[Path, typer.Argument(help="Folder for the prepared corpus")],
    model: Annotated[
        Path | None, typer.Option(help="Model folder whose speech tokenizer makes units")
    ] = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="The I-th of N parts; by process on a pod")
    ] = "",
    plot: Annotated[Path | None, typer.Option(help="Draw units and lengths to this file")] = None,
    strict: Annotated[bool, typer.Option(help="Exit with status 1 if items were rejected")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON")] = False,
    max_seconds: Annotated[float, typer.Option(help="Split longer recordings at silences")] = 60.0,
    shard_items: Annotated[int, typer.Option(help="Items of a shard, about")] = 512,
    threads: Annotated[int, typer.Option(help="That read recordings")] = 4,
    beam: Annotated[
        list[str] | None,
        typer.Option(help="Run as an Apache Beam pipeline; options such as --runner=DirectRunner"),
    ] = None,
    distributed: Annotated[
        bool, typer.Option(help="One of several processes, as a pod's or a cluster's says")
    ] = False,
) -> None:
    """Turn recordings and text into a corpus to train on: units, text and word times.

    A manifest has a JSON object a line: id, audio (a path from the manifest's folder), text, words
    ([[word, start, end], ...] in seconds), speaker and document; id and one of audio and text are
    needed. A run that was stopped goes on where it was. Items that cannot be used are listed, with
    reasons, in OUTPUT/rejects-*.jsonl.
    """
    if distributed or "JAX_COORDINATOR_ADDRESS" in os.environ:
        _join_processes()
    from spirit_jax.data import prepare as prepare_lib
    from spirit_jax.data import report

    settings = prepare_lib.PrepareConfig(shard_items, max_seconds, threads)
    part, parts = _parse_shard(shard)
    if beam is not None:
        if shard:
            raise InputError("--shard and --beam: a Beam pipeline shares the items out itself.")
        from spirit_jax.data import beam as beam_lib

        told = beam_lib.run(source, output, model, settings, [option for option in beam if option])
    else:
        from spirit_jax.speech_tokenizer import SpeechTokenizer

        tokenizer = SpeechTokenizer.from_pretrained(model) if model is not None else None
        with progress.counting("preparing", _count_items(source, parts)) as done:
            told = prepare_lib.prepare(source, output, tokenizer, settings, part, parts, done)
    if plot is not None:
        report.plot(told, plot)
    print(json.dumps(told) if as_json else report.describe(told))
    if told["rejected"]:
        print(f"{told['rejected']} items were rejected: see {output}/rejects-*", file=sys.stderr)
        if strict:
            raise typer.Exit(1)


@app.command()
def align(
    source: Annotated[Path, typer.Argument(help="JSONL manifest with id, audio and text")],
    output: Annotated[Path, typer.Argument(help="The manifest to write, with words")],
    model: Annotated[
        Path | None, typer.Option(help="CTC aligner, as python -m convert.ctc writes")
    ] = None,
    textgrid: Annotated[
        Path | None, typer.Option(help="Instead: folder of MFA's ID.TextGrid files")
    ] = None,
    whisperx: Annotated[
        Path | None, typer.Option(help="Instead: folder of WhisperX's ID.json files")
    ] = None,
    tier: Annotated[str, typer.Option(help="Of the TextGrids")] = "words",
    min_score: Annotated[
        float | None, typer.Option(help="Reject what aligns worse (0 is best)")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Recordings aligned at a time")] = 16,
) -> None:
    """Find when each word of a corpus is spoken, or take it from another tool's files.

    Items that cannot be aligned are listed, with reasons, in OUTPUT.rejects.jsonl. A run that was
    stopped goes on where it was.
    """
    from spirit_jax.data.align import Aligner
    from spirit_jax.data.align_corpus import align_corpus

    aligner = Aligner.from_pretrained(model) if model is not None else None
    with progress.counting("aligning", _count_items(str(source), 1)) as done:
        counted = 0

        def tell(total: int) -> None:
            nonlocal counted
            done(total - counted)
            counted = total

        told = align_corpus(
            source,
            output,
            aligner,
            textgrid=textgrid,
            whisperx=whisperx,
            tier=tier,
            min_score=min_score,
            batch_size=batch_size,
            progress=tell,
        )
    print(f"{output}: {told.aligned} items with word times, {told.rejected} rejected")


def _parse_shard(shard: str) -> tuple[int, int]:
    """(part, parts) of "I/N"; by process where it is not given."""
    if not shard:
        return jax.process_index() + 1, jax.process_count()
    part, separator, parts = shard.partition("/")
    if not separator or not part.isdigit() or not parts.isdigit():
        raise InputError(f"--shard is '{shard}'; expected I/N, such as 1/4.")
    return int(part), int(parts)


def _count_items(source: str, parts: int) -> int | None:
    """About how many items of a source are a part's; None where counting would take long."""
    from spirit_jax.data.manifest import read_source

    if source.startswith("tfds:"):
        return None
    return -(-sum(1 for _ in read_source(source)) // parts)


@app.command()
def new(
    output: Annotated[Path, typer.Argument(help="Model folder to write")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="What its text vocabulary is learnt from: see prepare"),
    ] = None,
    *,
    speech: Annotated[str, typer.Option(help="Model whose speech tokenizer it gets, or a name")],
    start: Annotated[
        str | None, typer.Option(help="Model whose language model and texts it goes on from")
    ] = None,
    pieces: Annotated[
        int | None, typer.Option(help="Of the text vocabulary; 1000 if not given")
    ] = None,
) -> None:
    """Make a model folder, to train a language model of your own in.

    From TEXTS: a vocabulary and a speech tokenizer. A run config then says model: OUTPUT,
    random_init: true and the sizes of the language model. With --start: the language model of
    another, with new rows for the units that it lacks (Expressive from Base, say).

    prepare takes --model OUTPUT.
    """
    from spirit_jax import new_model

    if start is None and texts:
        vocab = new_model.write_new_model(output, speech, texts, pieces or 1000)
    elif start is not None and not texts and pieces is None:
        vocab = new_model.extend_model(output, start, speech)
    else:
        raise InputError("Give TEXTS (and --pieces) to learn a vocabulary from, or --start alone.")
    print(f"{output}: {vocab.text_size} text pieces and {vocab.size - vocab.first_unit} units")


@app.command()
def train(
    run: Annotated[Path, typer.Option("--config", help="Run config, YAML; see RunConfig")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as steps=200")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write the newest checkpoint as a folder to use, and end")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="With --export: a language model in float16")
    ] = False,
    distributed: Annotated[
        bool, typer.Option(help="One of several processes, as a pod's or a cluster's says")
    ] = False,
) -> None:
    """Train a network; a run that was stopped goes on.

    The config's `recipe` says which: lm, the language model, on prepared corpora (the default), or
    a network of the speech tokenizer, on recordings: units, quantizer, pitch, style or vocoder.

    Prints a line of metrics now and then; all are in RUN_DIR/metrics.jsonl, and for TensorBoard in
    RUN_DIR/tensorboard. SIGTERM saves a checkpoint and ends the run. Of several processes every one
    runs this same command, with --distributed or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID set.
    """
    if distributed or "JAX_COORDINATOR_ADDRESS" in os.environ:
        _join_processes()
    from spirit_jax import config
    from spirit_jax.training import export as export_lib
    from spirit_jax.training import find_recipe, hosts

    name = str(config.read_mapping(run).get("recipe", "lm"))
    recipe = find_recipe(name)
    settings = config.read(recipe.RunConfig, run, overrides or [])
    if name == "lm":
        settings = _make_up(settings)
    if half and (export is None or name != "lm"):
        raise InputError("--half is for --export of a language model; pack has one of its own.")
    if export is not None:
        if name == "lm":
            step = export_lib.export(settings, export, half)
        else:
            step = recipe.export(settings, export)
        print(f"{export}: the network after step {step}")
        return
    started, last = time.monotonic(), 0.0
    for metrics in recipe.train(settings):
        elapsed = time.monotonic() - started
        told = elapsed - last >= 5 or metrics["step"] in (1, settings.steps)
        if told and hosts.is_first():
            last = elapsed
            print(_describe(metrics, settings.steps), flush=True)


def _make_up(settings):
    """Makes what a run's config says is to be made, "made:KIND" and "made:COUNT", in its folder."""
    from spirit_jax.data.toy import write_toy_corpus
    from spirit_jax.random_model import write_random_model

    folder = Path(settings.run_dir) / "made"

    def corpora(sources, seed):
        made = []
        for source in sources:
            kind, _, count = source.path.partition(":")
            if kind == "made":
                if not count.isdigit() or not int(count):
                    raise InputError(f"'{source.path}' is no corpus to make; write made:200.")
                path = folder / f"corpus-{seed}-{count}"
                write_toy_corpus(path, int(count), seed)
                source = dataclasses.replace(source, path=str(path))
            made.append(source)
        return tuple(made)

    kind, _, name = settings.model.partition(":")
    if kind == "made":
        if not (folder / name).is_dir():
            write_random_model(folder / name, name)
        settings = dataclasses.replace(settings, model=str(folder / name))
    data = dataclasses.replace(settings.data, sources=corpora(settings.data.sources, 0))
    held_out = corpora(settings.eval_sources, 1)
    return dataclasses.replace(settings, data=data, eval_sources=held_out)


def _join_processes() -> None:
    """Meets the other processes of a run; what the environment does not say, the cluster does."""
    given = {
        "coordinator_address": os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "num_processes": os.environ.get("JAX_NUM_PROCESSES"),
        "process_id": os.environ.get("JAX_PROCESS_ID"),
    }
    numbers = ("num_processes", "process_id")
    jax.distributed.initialize(
        **{name: int(v) if name in numbers else v for name, v in given.items() if v is not None}
    )


def _describe(metrics: dict, steps: int) -> str:
    """A line about a step, with the time that is left at its pace."""
    names = ("loss", "loss_text", "loss_speech", "eval_loss", "grad_norm", "mfu")
    shown = " ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
    left = (steps - metrics["step"]) * metrics["seconds"]
    rate = f"{metrics['tokens_per_second']:.0f} tokens/s, {left / 60:.1f} min left"
    return f"step {metrics['step']}/{steps} {shown} ({rate})"


@app.command()
def pack(
    output: Annotated[Path, typer.Argument(help="Speech tokenizer folder to write")],
    units: Annotated[Path, typer.Option(help="Folder with hubert and quantizer")],
    pitch: Annotated[Path | None, typer.Option(help="Pitch network, for Expressive")] = None,
    style: Annotated[Path | None, typer.Option(help="Style network, for Expressive")] = None,
    vocoder: Annotated[Path | None, typer.Option(help="Vocoder; needed to speak only")] = None,
    f0_method: Annotated[str, typer.Option(help="pyin or fcpe")] = "pyin",
    half: Annotated[bool, typer.Option("--half", help="Store float16: half the size")] = False,
    share: Annotated[
        Path | None, typer.Option(help="Set whose equal networks are used, not stored again")
    ] = None,
) -> None:
    """Pack trained networks, as `train --export` writes them, into a speech tokenizer folder."""
    from spirit_jax.packing import pack

    sealed = pack(output, units, pitch, style, vocoder, f0_method, half, share)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {sealed.kind}, {', '.join(sealed.hashes)}; {size / 1e6:.1f} MB")


@app.command("eval")
def evaluate(
    model: ModelDir,
    run: Annotated[Path, typer.Option("--config", help="Tasks, YAML; see EvalConfig")],
    output: Annotated[Path, typer.Option(help="Folder for figures, answers and sounds")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as seed=1")
    ] = None,
) -> None:
    """Evaluate a model by tasks: what it writes and says of recordings and texts, and likelihoods.

    Prints a table. OUTPUT has figures.json, TASK.jsonl with every prompt and answer, and what was
    said. Judges, recognisers or classifiers of what was said, are commands in the config.
    """
    from spirit_jax import config
    from spirit_jax.evaluation.run import EvalConfig, table
    from spirit_jax.evaluation.run import evaluate as run_all
    from spirit_jax.spiritlm import SpiritLM

    settings = config.read(EvalConfig, run, overrides or [])
    lm = SpiritLM.from_pretrained(model)
    figures = run_all(lm, settings, output, Console(stderr=True))
    Console().print(table(figures))


@app.command()
def demo(
    speech: Annotated[Path | None, typer.Option(help="A recording of your own to hear")] = None,
    text: Annotated[str | None, typer.Option(help="To read aloud, and to go on from")] = None,
    output: Annotated[Path, typer.Option(help="Folder to write to")] = Path("spirit-jax-demo"),
) -> None:
    """Hear a request, write down what was said and meant, read aloud, and make a story up.

    The small models that do it come with the package. They know the words and sentences of a small
    world: requests to a house, times, dates, weather, numbers, spelling, very short stories.
    """
    from spirit_jax.demo import run

    run(output, speech, text, Console())


def main() -> None:
    """Runs the command line; a bad input is one line on standard error and exit status 1."""
    _use_compilation_cache()
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a second start is quick."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "spirit_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _parse_input(item: str) -> tuple[str, str]:
    kind, separator, content = item.partition(":")
    if not separator or kind not in ("text", "speech"):
        raise InputError(f"'{item}' is no input; write \"text:...\" or speech:FILE.")
    return kind, content
