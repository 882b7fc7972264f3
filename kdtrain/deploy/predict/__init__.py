"""Trained models as predictors: their opening, their test, and the classification of single images."""
