"""Data of a user's own: folders, tables, Hugging Face folders, WebDataset."""
