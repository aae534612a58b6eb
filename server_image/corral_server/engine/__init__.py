"""The engine process: llama.cpp, one inference thread, no HTTP. Everything that calls llama.cpp is in this package."""
