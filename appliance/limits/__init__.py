"""How much may be asked for, and who waits for whom."""
