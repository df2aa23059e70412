"""What belongs to restore: its data, its networks and losses, its scores, and the use of its runs."""
