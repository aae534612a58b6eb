"""Model files: from their source into the cache, or found where they are.

Runs in its own process, so that its libraries cost the supervisor nothing.
"""
