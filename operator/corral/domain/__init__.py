"""The decision core: what runs where, who makes room, and why. Pure: standard library only, no clock, client, logger, environment or randomness."""
