"""Ten prompts and a model's greedy answers, as Markdown. python transcript.py [MODEL] > transcript.md"""

import sys

from sb_edge.models.registry import resolve_gguf
from sb_edge.runtime.conversation import Conversation
from sb_edge.runtime.generation import Stopping
from sb_edge.runtime.sampling import Sampling
from sb_edge.runtime.session import Model, Session

PROMPTS = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Give me three tips for sleeping better.",
    "Write a short story about a cat who finds a key.",
    "What do bees do for plants?",
    "How do I boil an egg?",
    "Why is it important to drink water?",
    "Write a polite email asking a teacher for more time.",
    "What is the difference between a lake and a river?",
    "Name three things that one should take along on a hike.",
)

if sys.argv[1:] and sys.argv[1].startswith("-"):
    sys.exit(__doc__)
name = sys.argv[1] if len(sys.argv) > 1 else "default"
print(f"# What `{name}` answers\n")
print("Greedy, with a repeat penalty of 1.1, at most 128 tokens; each prompt is a conversation of its own.")
with Model(resolve_gguf(name)) as model, Session(model, n_ctx=1024, n_outputs=1) as session:
    for prompt in PROMPTS:
        _, pieces = Conversation(
            session, Sampling(temperature=0, repeat_penalty=1.1), stopping=Stopping(n_predict=128)
        ).say(prompt)
        quoted = "\n".join(f"> {line}".rstrip() for line in "".join(pieces).strip().splitlines())
        print(f"\n**{prompt}**\n\n{quoted}", flush=True)
