"""What belongs to dense-ssl: its data, its views, its proof, and the use of its runs."""
