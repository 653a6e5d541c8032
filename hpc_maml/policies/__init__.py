"""Policies: a network and a distribution of actions."""
