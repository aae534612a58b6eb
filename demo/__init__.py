"""A tour of Corral on one machine: three models, room for two."""
