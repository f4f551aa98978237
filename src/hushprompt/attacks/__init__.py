"""Who was in the training data? Attacks on what a federation publishes, and the audits that are made of them."""
