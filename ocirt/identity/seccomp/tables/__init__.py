"""System call numbers, one module an architecture."""
