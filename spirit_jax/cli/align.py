"""`spirit-jax align`: adds word times to a corpus."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spirit_jax import allocator, model_folder
from spirit_jax.cli import checks
from spirit_jax.cli.options import count_items, parse_shard
from spirit_jax.data.configs import check_alignment
from spirit_jax.data.manifest import check_source
from spirit_jax.errors import InputError, plural

if TYPE_CHECKING:
    from spirit_jax.data.align_words import WordAligner

FIRST_STEP = (
    "For English use --aligner pocketsphinx. For other languages, and for more exact times, use a "
    "CTC network: download facebook/wav2vec2-base-960h (English), facebook/mms-1b-all (1,162 "
    "languages) or another Wav2Vec2ForCTC from Hugging Face, run spirit-jax convert ctc "
    "--hf HF_DIR --output ALIGNER, and give --model ALIGNER."
)


Source = Annotated[
    Path,
    typer.Argument(help="JSONL manifest with id, audio and text, or a folder of recordings"),
]
Output = Annotated[Path, typer.Argument(help="The manifest to write, with words")]
Model = Annotated[Path | None, typer.Option(help="CTC aligner, written by spirit-jax convert ctc")]
AlignerName = Annotated[
    str | None, typer.Option(help="Instead: pocketsphinx, for English ('.[corpora]')")
]
TextGrids = Annotated[Path | None, typer.Option(help="Instead: folder of MFA's ID.TextGrid files")]
WhisperX = Annotated[Path | None, typer.Option(help="Instead: folder of WhisperX's ID.json files")]
Tier = Annotated[str, typer.Option(help="Name of the TextGrids' tier with the words")]
MinScore = Annotated[float | None, typer.Option(help="Reject items with a lower score (0 is best)")]
ShardOfCorpus = Annotated[
    str | None, typer.Option(metavar="I/N", help="Align part I of N, with an OUTPUT of its own")
]
BatchSize = Annotated[int, typer.Option(help="Recordings in a batch")]


def align(
    context: typer.Context,
    source: Source,
    output: Output,
    model: Model = None,
    aligner: AlignerName = None,
    textgrid: TextGrids = None,
    whisperx: WhisperX = None,
    tier: Tier = "words",
    min_score: MinScore = None,
    batch_size: BatchSize = 16,
    shard: ShardOfCorpus = None,
) -> None:
    """Compute the times of each word of a corpus, or read them from another tool's files.

    In a folder each recording has a text of the same name: a.wav and a.txt.
    Items that cannot be aligned are listed, with reasons, in OUTPUT.rejects.jsonl. An interrupted
    run resumes.
    """
    _check_ways(model, aligner, textgrid, whisperx)
    check_alignment(batch_size, min_score)
    part, parts = parse_shard(shard) if shard is not None else (1, 1)
    check_source(str(source))
    checks.new_file(output)
    if model is not None:
        model_folder.find_aligner(model)
    elif aligner is None:
        checks.existing(textgrid or whisperx)
        idle = "min_score", "batch_size"
        checks.refuse_idle(context, idle, "Word times of other tools are used unchanged")
    if textgrid is None:
        checks.refuse_idle(context, ("tier",), "There are no TextGrids")
    from spirit_jax.data import progress
    from spirit_jax.data.align_corpus import align_corpus

    allocator.return_large_blocks()
    word_aligner = _load_aligner(model, aligner)
    with progress.counting("aligning", count_items(str(source), parts)) as add:
        summary = align_corpus(
            source,
            output,
            word_aligner,
            textgrid=textgrid,
            whisperx=whisperx,
            tier=tier,
            min_score=min_score,
            batch_size=batch_size,
            part=part,
            parts=parts,
            progress=_added(add),
        )
    print(
        f"{output}: {plural(summary.aligned, 'item')} with word times, {summary.rejected} rejected"
    )
    if summary.rejected:
        print(f"the reasons are in {output}.rejects.jsonl", file=sys.stderr)
    for note in summary.notes():
        print(f"warning: {note}", file=sys.stderr)


def _load_aligner(model: Path | None, aligner: str | None) -> "WordAligner | None":
    """The CTC aligner `model` or PocketSphinx; None if the files of another tool are read."""
    if aligner is not None:
        from spirit_jax.data.pocketsphinx_aligner import PocketsphinxAligner

        return PocketsphinxAligner()
    if model is not None:
        import jax

        from spirit_jax.data.align import Aligner

        return Aligner.from_pretrained(model, jax.local_devices())
    return None


def _check_ways(
    model: Path | None, aligner: str | None, textgrid: Path | None, whisperx: Path | None
) -> None:
    """Raises `InputError` unless word times have one source."""
    ways = {
        "--model": model,
        "--aligner": aligner,
        "--textgrid": textgrid,
        "--whisperx": whisperx,
    }
    given = sum(way is not None for way in ways.values())
    if given == 0:
        raise InputError(f"Word times come from one of {', '.join(ways)}; give one. {FIRST_STEP}")
    if given > 1:
        raise InputError(f"Word times come from one of {', '.join(ways)}; give only one.")
    if aligner not in (None, "pocketsphinx"):
        raise InputError(f"--aligner {aligner}: is unknown; expected pocketsphinx. {FIRST_STEP}")


def _added(add: Callable[[int], None]) -> Callable[[int], None]:
    """A function of totals that calls `add` with what each adds to the one before."""
    counted = 0

    def show_total(total: int) -> None:
        nonlocal counted
        add(total - counted)
        counted = total

    return show_total
