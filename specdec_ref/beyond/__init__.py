"""Beyond one draft model and one decision per token: other ways to draft and to verify, all
exact."""
