"""What the commands at the top level are made of. Nothing here is run directly, and nothing imports train.py."""
