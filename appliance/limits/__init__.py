"""How much may be asked for: rules, the book that counts, and how the book survives a crash."""
