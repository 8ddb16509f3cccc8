"""Figures: drawn once, shown in pages and papers."""
