"""From learnable context vectors to text features, and their exact per-example gradients."""
