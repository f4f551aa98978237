"""What tests share: made data, models, runs and federations."""
