"""Code for the lessons and exercises: pictures of rounds, explorers, and the check of the environment."""
