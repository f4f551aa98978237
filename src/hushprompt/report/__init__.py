"""Tables, made from records alone."""
