"""The server of one GGUF model: a supervisor that owns the port and an engine process that owns llama.cpp."""

__version__ = "0.1.0"
