"""What a person looks at: reports, pictures, Neuroglancer, descriptions."""
