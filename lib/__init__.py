"""The modules behind the commands. Do not run them directly; none of them imports train.py."""
