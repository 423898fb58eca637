"""The JSON bodies of requests: OpenAI's fields that have an effect here, and a few more."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from spirit_jax.generation.config import MAX_STOPS

MAX_CHOICES = 64  # prompts times samples of a request
MAX_CHARACTERS = 4096  # of a spoken text, as in OpenAI's interface

Number = Annotated[StrictFloat | StrictInt, Field(allow_inf_nan=False)]
StopString = Annotated[StrictStr, Field(min_length=1)]
Tokens = Annotated[list[StrictInt], Field(min_length=1)]


class Body(BaseModel):
    """A body; a field that it does not have is an error, so that none is ignored."""

    model_config = ConfigDict(extra="forbid")


class StreamOptions(Body):
    """Settings of a streamed response."""

    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False


class CompletionBody(Body):
    """The body of /v1/completions.

    Attributes:
      prompt: texts, prompt strings with markup, or token ids.
      modality: what may be generated; not in OpenAI's interface, as are all fields below it.
    """

    model: StrictStr
    prompt: StrictStr | Tokens | list[StrictStr] | list[Tokens]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = 16
    temperature: Annotated[Number, Field(ge=0, le=1e6)] | None = 1.0
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = 1.0
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = 1
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=0)] | None = None
    user: StrictStr | None = None
    # These have one possible value, since others have no effect here.
    best_of: Annotated[StrictInt, Field(ge=1, le=1)] | None = None
    echo: Literal[False] | None = False
    suffix: Literal[""] | None = None
    presence_penalty: Annotated[Number, Field(ge=0, le=0)] | None = 0.0
    frequency_penalty: Annotated[Number, Field(ge=0, le=0)] | None = 0.0
    logit_bias: Annotated[dict[str, Number], Field(max_length=0)] | None = None
    modality: Literal["text", "speech", "arbitrary"] = "arbitrary"
    top_k: Annotated[StrictInt, Field(ge=0)] = 0
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[Number, Field(gt=0)] = 1.0
    max_speech_seconds: Annotated[Number, Field(gt=0)] | None = None
    return_token_ids: StrictBool = False


class SpeechBody(Body):
    """The body of /v1/audio/speech.

    Attributes:
      voice: a speaker, by name or number; "default" for the vocoder's default.
      stream: whether the bytes are sent while they are generated; see `encoding.find_format`.
        It and all fields below it are not in OpenAI's interface.
      style: of the voice, by name or number; for an Expressive model a token such as "[St3]".
    """

    model: StrictStr
    input: Annotated[StrictStr, Field(min_length=1, max_length=MAX_CHARACTERS)]
    voice: StrictStr | StrictInt | None = None
    response_format: StrictStr | None = "mp3"
    stream_format: Literal["audio", "sse"] | None = "audio"
    speed: Annotated[Number, Field(ge=1, le=1)] | None = 1.0
    instructions: Literal[""] | None = None
    stream: StrictBool | None = None
    style: StrictStr | StrictInt | None = None
    temperature: Annotated[Number, Field(ge=0, le=1e6)] | None = 0.0
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = 1.0
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)] | None = None
    max_speech_seconds: Annotated[Number, Field(gt=0)] | None = None
