"""The small world that ships with the project: codec, text encoder, base network, demonstration."""
