"""Attacks on what a federation publishes, lower bounds on epsilon, and the audits that are made of them."""
