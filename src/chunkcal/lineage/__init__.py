"""How products were made, what tells one from another, and made again."""
