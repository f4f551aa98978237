"""Images and sounds become features once, and are kept on disk."""
