"""Quantization. Imported as sb_edge.quant."""

if __name__ != "sb_edge.quant":
    raise ImportError(
        "import this package as sb_edge.quant (it is the folder quant/ of the repository, mapped there)"
    )
