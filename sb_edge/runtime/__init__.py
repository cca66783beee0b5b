"""The engine in this process: models, sessions, generation, chat."""
