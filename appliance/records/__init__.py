"""What the box remembers: the database, the rows of exchanges, and the one writer that makes them durable."""
