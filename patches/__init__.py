"""The llama.cpp patch series and overlay, as data. Imported as sb_edge.patches."""
