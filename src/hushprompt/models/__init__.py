"""Frozen image-text models: two towers, a tokenizer, and what each can do."""
