"""The three roles, one loop each, and the messages between them."""
