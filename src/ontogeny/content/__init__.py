"""Learned content: predictive models and value functions that hand-written code of an agent queries and updates."""
