"""The rendered dataset, read by the trainers' own code. By hand: `make conformance`."""
