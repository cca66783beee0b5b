"""The Python API: load a model, generate, chat, convert, quantize."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sb_edge.convert.convert import convert_checkpoint
from sb_edge.models.registry import resolve_gguf
from sb_edge.quant.quantize import quantize as quantize_file
from sb_edge.runtime.conversation import Conversation
from sb_edge.runtime.generation import Generation, GenerationStats, Stopping
from sb_edge.runtime.open import Loading, open_session
from sb_edge.runtime.sampling import Sampling
from sb_edge.runtime.session import Session


class TextModel:
    """A loaded model with its context: what `load` returns. Close it, or use it in a `with` statement.

    Attributes:
        session: The engine's context; its methods give token ids, logits and states.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    def __enter__(self) -> TextModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the context and the weights."""
        self.session.close()
        self.session.model.close()


def load(
    model: str | Path,
    *,
    ctx_size: int = 8192,
    threads: int | None = None,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    spike_k: float | None = None,
) -> TextModel:
    """Load a GGUF.

    Args:
        model: Path of a GGUF, or the name of a built-in model ("default"), which is made on first use.
        ctx_size: Context size in tokens.
        threads: Number of threads; None: the fast physical cores.
        cache_type_k, cache_type_v: Types of cached keys and values: "f16", "f32", "q8_0", ...
        spike_k: k of every coded input; 0: no spikes; None: as the file says.

    Raises:
        GgufError: not found, not a sound GGUF, or one that the engine cannot run.
        OutOfMemoryForecast: the weights and the context will not fit in memory; nothing has been loaded.
        InferenceError: no vocabulary, or the engine refuses the settings.
        EngineError: the engine is not built (`sb-edge engine build`).
    """
    loading = Loading(
        n_ctx=ctx_size, n_threads=threads, type_k=cache_type_k, type_v=cache_type_v, spikes=spike_k
    )
    return TextModel(open_session(resolve_gguf(model), loading))


class TextStream:
    """Generated text, piece by piece: what `stream_generate` returns.

    It can be read once; another iteration goes on where the first was left.

    Attributes:
        stats: Token counts and times; complete when the iteration ends.
    """

    def __init__(self, generation: Generation) -> None:
        self._pieces = iter(generation)
        self.stats: GenerationStats = generation.stats

    def __iter__(self) -> Iterator[str]:
        return self._pieces


def stream_generate(
    model: TextModel,
    prompt: str,
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] = (),
) -> TextStream:
    """Continue a prompt; the model's earlier context is cleared.

    Args:
        model: Model of `load`.
        prompt: Text to continue.
        max_tokens: Maximum number of tokens to generate.
        sampling: Sampling options; None: llama.cpp's defaults. `Sampling(temperature=0)` is greedy.
        stop: Text or texts that end the output; they are not returned.

    Raises:
        InferenceError: the prompt is empty or does not fit the context, an option is out of range, the model
            is closed, or another text was begun before this one had ended.
    """
    session = model.session
    stopping = Stopping(max_tokens, (stop,) if isinstance(stop, str) else tuple(stop))
    tokens = session.model.tokenize(prompt)
    session.clear()
    return TextStream(Generation(session, tokens, sampling or Sampling(), stopping=stopping))


def generate(
    model: TextModel,
    prompt: str,
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] = (),
) -> str:
    """Continue a prompt and return the new text; arguments and errors as `stream_generate`."""
    return "".join(stream_generate(model, prompt, max_tokens=max_tokens, sampling=sampling, stop=stop))


class Chat:
    """A conversation; only the new part of each turn is evaluated.

    Args:
        model: Model of `load`, with a chat template.
        system: System message; None: none.
        sampling: Sampling options; None: llama.cpp's defaults.
        max_tokens: Maximum number of tokens of an answer; None: until the model ends it.

    Raises:
        InferenceError: the model has no chat template, or one that does not work.
    """

    def __init__(
        self,
        model: TextModel,
        system: str | None = None,
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self._chat = Conversation(model.session, sampling or Sampling(), system, Stopping(max_tokens))

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns so far: {"role": "system", "user" or "assistant", "content": text}."""
        return [dict(message) for message in self._chat.messages]

    def say(self, text: str) -> str:
        """Add a user's turn and return the answer.

        Raises:
            InferenceError: the conversation no longer fits the context.
        """
        _, pieces = self._chat.say(text)
        return "".join(pieces)


def convert(checkpoint: str | Path, output: str | Path | None = None, *, outtype: str = "auto") -> list[Path]:
    """Convert a SpikingBrain checkpoint (a Hugging Face folder) to GGUF.

    Args:
        checkpoint: Folder with config.json and safetensors files.
        output: File or folder to write; None: in the checkpoint's folder, named by GGUF's convention.
        outtype: Type of the matrices: "f32", "f16", "bf16", "q8_0" or "auto".

    Returns:
        The files written.

    Raises:
        CheckpointError, ConfigError, TokenizerError: the checkpoint cannot be converted; nothing is written.
        OutputError: the output cannot be written.
    """
    target = None if output is None else Path(output)
    return list(convert_checkpoint(Path(checkpoint), target, outtype=outtype).files)


def quantize(model: str | Path, output: str | Path, qtype: str) -> Path:
    """Quantize a GGUF with llama-quantize; the output appears when it is complete.

    Args:
        model: Path of a GGUF, or the name of a built-in model.
        output: File to write.
        qtype: llama-quantize's name of a type, such as "Q4_0".

    Raises:
        GgufError: the model cannot be read or quantized.
        OutputError: the output cannot be written.
        EngineError: the engine is not built.
    """
    quantize_file(resolve_gguf(model), Path(output), qtype)
    return Path(output)
