"""Other ways to draft and to verify, beyond a draft model and one decision per token. All are
exact."""
