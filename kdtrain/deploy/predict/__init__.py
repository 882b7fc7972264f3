"""Predictions of trained models: of a test set, and of single images."""
