"""What the lessons and exercises need beside the package: pictures of rounds, explorers, the environment's check."""
