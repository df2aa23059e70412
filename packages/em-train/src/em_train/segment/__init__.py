"""What belongs to segment: its data, its labels and loss, its scores, and the use of its runs."""
