"""Runs a recipe's rounds. The one package that uses both generation and training."""
