"""Training of the pair that ships: corpus, tokenizer, target, distilled drafts, heads, model card."""
