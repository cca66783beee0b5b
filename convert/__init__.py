"""Checkpoints to GGUF; transplant, upcycling and initialisation. Imported as sb_edge.convert."""

if __name__ != "sb_edge.convert":
    raise ImportError(
        "import this package as sb_edge.convert (it is the folder convert/ of the repository, mapped there)"
    )
