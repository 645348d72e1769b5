"""What runs models on this box. Knows nothing of HTTP clients, keys or policies."""
