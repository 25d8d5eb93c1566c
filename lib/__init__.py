"""The parts of the commands at the top level. Nobody runs these directly; none imports train.py."""
