"""The inference surface: OpenAI's shapes first, llama.cpp's additions on top. Nothing here knows llama.cpp; it talks to the engine by messages."""
