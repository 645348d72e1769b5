"""Who is asking: keys become principals, from memory."""
