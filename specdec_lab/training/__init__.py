"""Making the pair that ships: corpus, tokenizer, target, distilled drafts, model card."""
