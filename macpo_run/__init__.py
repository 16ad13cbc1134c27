"""Makes a recipe's rounds: the one place that sees both stages, what writes and what trains."""
