"""Anthropic's messages API, brought to chat completions and back."""
