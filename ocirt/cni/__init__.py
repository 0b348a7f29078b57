"""Container networking: a CNI 1.1 client, plugins of our own, port mapping (docs/networking.md)."""
