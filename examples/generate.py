"""Stream a continuation, then save the state and go on from it."""

from pathlib import Path

from sb_edge.models.registry import resolve_gguf
from sb_edge.runtime.generation import Generation
from sb_edge.runtime.sampling import GREEDY
from sb_edge.runtime.session import Model, Session

with Model(resolve_gguf("default")) as model, Session(model, n_ctx=1024) as session:
    prompt = model.tokenize("The lighthouse stood on a rock, and")
    generation = Generation(session, prompt, GREEDY, n_predict=24)
    for piece in generation:
        print(piece, end="", flush=True)
    generation.evaluate_rest()
    session.save(Path("lighthouse.state"), [*prompt, *generation.tokens])

    session.clear()
    session.load(Path("lighthouse.state"))
    for piece in Generation(session, model.tokenize(" At night,"), GREEDY, n_predict=24):
        print(piece, end="", flush=True)
    print()
