"""Model cards of finished runs."""
