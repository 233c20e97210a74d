"""Learned content: world models and value functions that human-written code queries and updates."""
