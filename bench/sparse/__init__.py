"""Speed of sparse layouts."""
