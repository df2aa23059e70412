"""What belongs to mae: its data, its costs, what it is compared with, and what it shows."""
