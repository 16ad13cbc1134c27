"""An attack on the program: kills, damaged files and recipes, hostile words.

`python -m benchmarks.attack` runs all of it, and a small part runs with the tests.
"""
