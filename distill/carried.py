"""What GLA states carry beyond the window: a student beside itself with states made anew.

Before the last window of a prompt the states of the GLA layers are dropped, so that they hold that window
alone. Keys and values of the window layers stay as they were computed from all of the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch
from torch import Tensor
from torch.nn import functional

from sb_edge.distill.base import gla_layers_of
from sb_edge.evaluate.recall_cases import Encode, RecallCase
from sb_edge.evaluate.retrieval import RecallTask
from sb_edge.reference.layers import WINDOWED
from sb_edge.reference.network import Cache, SpikingBrain
from sb_edge.util.progress import progress_bar


def set_window(model: SpikingBrain, window: int) -> None:
    """Limit the window layers to another window, tokens."""
    for module in model.modules():
        if isinstance(module, WINDOWED):
            module.window = window


@dataclass(frozen=True)
class CarriedScore:
    """Answers of a student as it is, and of the same with GLA states made anew.

    Attributes:
        task: the task.
        hits, anew_hits: for each case, whether every token of the answer is the likeliest.
        log_p, anew_log_p: for each case, mean log probability of the answer's tokens, nats.
    """

    task: RecallTask
    hits: tuple[bool, ...]
    anew_hits: tuple[bool, ...]
    log_p: tuple[float, ...]
    anew_log_p: tuple[float, ...]

    @property
    def gain(self) -> tuple[float, float]:
        """Gain in `log_p` by the states, nats, mean over the cases, and its standard error."""
        gains = [own - anew for own, anew in zip(self.log_p, self.anew_log_p, strict=True)]
        return fmean(gains), pstdev(gains) / math.sqrt(len(gains))


@torch.no_grad()
def carried_score(model: SpikingBrain, task: RecallTask, encode: Encode, window: int) -> CarriedScore:
    """Ask a student with GLA states of all of the text, and of the last `window` tokens before the answer.

    Args:
        model: the student.
        task: cases whose distance is beyond the window.
        encode: the student's tokenizer.
        window: Number of tokens that the window layers see.
    """
    forgotten = gla_layers_of(model.config)
    answers: list[list[tuple[bool, float]]] = [[], []]
    with progress_bar(f"{task.name} after {task.distance} tokens, cases", task.trials) as advance:
        for case in task.cases(encode):
            cut = max(0, len(case.prompt) - window)
            cache = Cache()
            if cut:
                model.hidden(_row(case.prompt[:cut], model), cache)
            for found, dropped in zip(answers, ((), forgotten), strict=True):
                layers = {at: state for at, state in cache.layers.items() if at not in dropped}
                found.append(_answer(model, case, cut, Cache(cache.position, layers)))
            advance(1)
    (hits, log_p), (anew_hits, anew_log_p) = (zip(*found, strict=True) for found in answers)
    return CarriedScore(task, hits, anew_hits, log_p, anew_log_p)


def _answer(model: SpikingBrain, case: RecallCase, cut: int, cache: Cache) -> tuple[bool, float]:
    """Whether every token of the answer is the likeliest, and their mean log probability, nats."""
    rest = (*case.prompt[cut:], *case.answer[:-1])
    hidden = model.hidden(_row(rest, model), cache)[0, -len(case.answer) :]
    log_p = functional.linear(hidden, model.head).float().log_softmax(-1)
    wanted = _row(case.answer, model)[0]
    right = bool((log_p.argmax(-1) == wanted).all())
    return right, float(log_p.gather(1, wanted[:, None]).mean())


def _row(tokens: Iterable[int], model: SpikingBrain) -> Tensor:
    return torch.tensor([list(tokens)], device=model.head.device)
