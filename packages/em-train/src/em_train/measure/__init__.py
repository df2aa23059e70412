"""Speed of reading and of training."""
