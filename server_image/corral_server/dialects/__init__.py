"""How models write tool calls and thoughts: recognised from the chat template, constrained by grammars, read back from text. Pure; no HTTP."""
