"""What a model shows: its places by name, its forward calls, the tokens in them."""
