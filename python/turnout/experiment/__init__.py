"""What became of the entities of each arm: exposures and outcomes, what they prove, and who acts on it."""
